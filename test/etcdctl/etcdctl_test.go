// Package etcdctl runs the same etcdctl commands against a real etcd and
// against keelson and compares what they print.
package etcdctl

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os/exec"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/keelson-io/keelson/test/harness"
)

// patience bounds every wait; nothing takes it when all is well.
const patience = 3 * time.Minute

// step is one command: its arguments, separated by spaces, or argv where an
// argument holds one, and its standard input.
type step struct {
	args  string
	argv  []string
	stdin string
}

// script is run in order, on one server that was empty.
var script = []step{
	{args: "put a 1"},
	{args: "put a 2 --prev-kv"},
	{args: "put b 1"},
	{args: "put dir/x 9"},
	{args: "put dir/y 3"},
	{args: "put dir/z 5"},
	{args: "put dir/y 4"},
	{args: "put -- -dash value"},
	{args: "put from-stdin", stdin: "the value\nof two lines"},
	{args: "put none --ignore-value"},
	{args: "put a --ignore-value"},
	{args: "put", stdin: ""},

	{args: "get a"},
	{args: "get none"},
	{args: "get a --print-value-only"},
	{args: "get a b"},
	{args: "get a c"},
	{args: "get dir/ --prefix"},
	{args: "get dir/ --prefix --keys-only"},
	{args: "get dir/ --prefix --count-only"},
	{args: "get dir/ --prefix --count-only -w fields"},
	{args: "get dir/ --prefix --limit 2"},
	{args: "get dir/ --prefix --limit 2 -w json"},
	{args: "get dir/ --prefix -w json"},
	{args: "get dir/ --prefix -w fields"},
	{args: "get dir/ --prefix --keys-only -w json"},
	{args: "get dir/ --prefix --sort-by=VALUE"},
	{args: "get dir/ --prefix --sort-by=VALUE --order=DESCEND"},
	{args: "get dir/ --prefix --sort-by=MODIFY --order=DESCEND --keys-only"},
	{args: "get dir/ --prefix --sort-by=CREATE --order=ASCEND --keys-only"},
	{args: "get dir/ --prefix --sort-by=VERSION --order=ASCEND --keys-only"},
	{args: "get dir/ --prefix --sort-by=KEY --order=DESCEND --limit 1"},
	{args: "get a --rev 2"},
	{args: "get a --rev 3"},
	{args: "get a --rev 999"},
	{args: "get a --consistency=s"},
	{args: "get dir/y --from-key --keys-only"},
	{args: "get --prefix --keys-only", argv: []string{"get", "--prefix", "--keys-only", ""}},
	{args: "get dir/ --prefix --min-mod-rev 6 --keys-only"},
	{args: "get dir/ --prefix --max-create-rev 6 --keys-only"},
	{args: "get"},

	{args: "del none"},
	{args: "del dir/x --prev-kv"},
	{args: "del dir/ --prefix"},
	{args: "del a -w json"},
	{args: "get a -w json"},

	{args: "txn -i", stdin: "mod(\"b\") = \"4\"\nvalue(\"b\") = \"1\"\n\nput b 2\nget b\n\nput b never\n\n"},
	{args: "txn -i", stdin: "version(\"b\") > \"5\"\n\nput b never\n\ndel b\nget b\n\n"},
	{args: "txn", stdin: "create(\"new\") = \"0\"\n\nput new 1\nput other 1\n\n\n"},
	{args: "txn -w json", stdin: "lease(\"new\") = \"0\"\n\nget new\n\nget other\n\n"},
	{args: "txn", stdin: "\nput dup 1\nput dup 2\n\n\n"},

	{args: "lease grant 300"},
	{args: "lease list"},
	{args: "lease timetolive 1234"},
	{args: "lease revoke 1234"},
	{args: "lease keep-alive --once 1234"},
	{args: "put leased 1 --lease=1234"},

	{args: "compaction 8"},
	{args: "compaction 8"},
	{args: "compaction 9999"},
	{args: "get a --rev 3"},
	{args: "compaction 10 --physical"},
	{args: "endpoint hashkv"},
	{args: "endpoint hashkv -w json"},
	{args: "endpoint hashkv -w table"},
	{args: "endpoint hashkv --rev 12"},
	{args: "endpoint health"},
	{args: "endpoint health -w json"},
	{args: "endpoint status"},
	{args: "endpoint status -w json"},
	{args: "endpoint status -w fields"},
	{args: "member list"},
	{args: "member list -w json"},
	{args: "member list -w table"},
	{args: "alarm list"},
	{args: "alarm disarm"},
	{args: "defrag"},
	{args: "get b --hex"},
	{args: "get new -w json"},
	{args: "move-leader 1"},
	{args: "member remove 1"},
	{args: "check perf --load=none"},
	{args: "version"},
}

func TestMain(m *testing.M) { harness.Main(m) }

func TestEtcdctl(t *testing.T) {
	outputs := map[harness.Backend][]string{}
	var mu sync.Mutex
	t.Run("run", func(t *testing.T) {
		// Both are needed, whatever is asked for: this is a comparison.
		for _, backend := range []harness.Backend{harness.Etcd, harness.Keelson} {
			t.Run(string(backend), func(t *testing.T) {
				t.Parallel()
				ctl := newCtl(t, backend)
				out := make([]string, len(script))
				for i, s := range script {
					out[i] = ctl.run(t, s)
				}
				mu.Lock()
				defer mu.Unlock()
				outputs[backend] = out
			})
		}
	})
	want, got := outputs[harness.Etcd], outputs[harness.Keelson]
	if len(want) != len(script) || len(got) != len(script) {
		t.Fatal("a script did not run to its end")
	}
	for i, s := range script {
		t.Run(fmt.Sprintf("%02d %s", i, s.args), func(t *testing.T) {
			if got[i] != want[i] {
				t.Errorf("etcdctl %s\nwith etcd:\n%s\nwith keelson:\n%s", s.args, want[i], got[i])
			}
		})
	}
}

type ctl struct {
	path, endpoint, dir string
	nodes               int
}

func newCtl(t *testing.T, backend harness.Backend) ctl {
	t.Helper()
	return ctlOf(t, startServer(t, backend))
}

func ctlOf(t *testing.T, srv *harness.Server) ctl {
	t.Helper()
	return ctl{path: harness.Tool(t, "etcdctl"), endpoint: srv.Endpoint, dir: srv.Dir, nodes: len(srv.Nodes)}
}

func (c ctl) command(ctx context.Context, args ...string) *exec.Cmd {
	return exec.CommandContext(ctx, c.path, append([]string{"--endpoints", c.endpoint, "--command-timeout", "1m"}, args...)...)
}

// run returns the exit status and everything printed, without what differs
// from one server to the next.
func (c ctl) run(t *testing.T, s step) string {
	t.Helper()
	args := s.argv
	if args == nil {
		args = strings.Fields(s.args)
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	cmd := c.command(ctx, args...)
	cmd.Stdin = strings.NewReader(s.stdin)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	if ctx.Err() != nil {
		t.Fatalf("etcdctl %s hangs", s.args)
	}
	return c.anyOrder(strings.Join(args, " "), fmt.Sprintf("exit: %v\n%s%s", err, c.normalize(stdout.String()), c.normalize(stderr.String())))
}

var volatile = []struct {
	pattern *regexp.Regexp
	with    string
}{
	// Identities, sizes and counters of Raft belong to the server. Whether
	// they are zero is not.
	{regexp.MustCompile(`("(?:cluster_id|member_id|ID|leader|raft_term|raftTerm|raftIndex|raftAppliedIndex|dbSize|dbSizeInUse)":)[1-9][0-9]*`), "${1}N"},
	{regexp.MustCompile(`("(?:ClusterID|MemberID|Leader|RaftTerm|RaftIndex|RaftAppliedIndex|DBSize|DBSizeInUse|ID)" : )[1-9][0-9]*`), "${1}N"},
	{regexp.MustCompile(`\b[0-9a-f]{12,16}\b`), "ID"},
	{regexp.MustCompile(`\b[0-9.]+ ([kM]?B)\b`), "SIZE"},
	// keelson without a cluster has no peers and no URL for them.
	{regexp.MustCompile(`"peerURLs":\[[^\]]*\],`), ""},
	{regexp.MustCompile(`(│ default │) \S*?/peer\.sock`), "$1"},
	{regexp.MustCompile(`unix://(?:DIR/peer|peer:)[0-9]`), "PEER"},
	{regexp.MustCompile(`unix://DIR/client[0-9]\.sock`), "OTHER"},
	{regexp.MustCompile(`took = \S+`), "took"},
	{regexp.MustCompile(`"took":"[^"]*"`), "took"},
	{regexp.MustCompile(`took [0-9.]+\S*s\b`), "took"},
	// The client says this of a call that an interrupt has met under way.
	{regexp.MustCompile(`(?m)^\{"level":"warn".*"retrying of unary invoker failed".*code = Canceled.*\n\n?`), ""},
	{regexp.MustCompile(`"ts":"[^"]*"`), "ts"},
	{regexp.MustCompile(`"logger":"[^"]*","caller":"[^"]*"|0x[0-9a-f]+`), ""},
	{regexp.MustCompile(`remaining\([0-9]+s\)`), "remaining"},
}

var (
	statusRow = regexp.MustCompile(`(?m)^((?:ENDPOINT|OTHER), ID, 3\.7\.3.*)$`)
	memberRow = regexp.MustCompile(`(?m)^ID, started, default, [^,]*, `)
	tableRule = regexp.MustCompile(`-{3,}|─{3,}| {2,}`)
)

func (c ctl) normalize(s string) string {
	s = strings.ReplaceAll(s, c.endpoint, "ENDPOINT")
	s = strings.ReplaceAll(s, c.dir, "DIR")
	s = tableRule.ReplaceAllString(s, " ")
	for _, v := range volatile {
		s = v.pattern.ReplaceAllString(s, v.with)
	}
	s = memberRow.ReplaceAllString(s, "ID, started, default, PEER, ")
	s = statusRow.ReplaceAllStringFunc(s, func(row string) string {
		return regexp.MustCompile(`\b[0-9]+\b`).ReplaceAllString(row, "N")
	})
	return s
}

// TestLease follows one lease through its life, its id taken from what grant
// prints.
func TestLease(t *testing.T) {
	outputs := map[harness.Backend]string{}
	for _, backend := range []harness.Backend{harness.Etcd, harness.Keelson} {
		c := newCtl(t, backend)
		var b strings.Builder
		do := func(args ...string) string {
			out := c.run(t, step{args: strings.Join(args, " "), argv: args})
			fmt.Fprintln(&b, out)
			return out
		}
		id := c.grant(t)
		do("put", "leased", "1", "--lease="+id)
		do("lease", "list")
		do("lease", "timetolive", id)
		do("lease", "timetolive", id, "--keys") // of one key: etcd gives them in no order
		do("put", "another", "1", "--lease="+id)
		do("lease", "keep-alive", "--once", id)
		do("get", "leased", "--keys-only")
		do("lease", "revoke", id)
		do("get", "leased")
		do("lease", "timetolive", id)
		do("lease", "keep-alive", "--once", id)
		do("lease", "list")
		outputs[backend] = b.String()
	}
	if got, want := outputs[harness.Keelson], outputs[harness.Etcd]; got != want {
		t.Errorf("with etcd:\n%s\nwith keelson:\n%s", want, got)
	}
}

func (c ctl) grant(t *testing.T) string {
	t.Helper()
	out, err := c.command(t.Context(), "lease", "grant", "300").Output()
	if err != nil {
		t.Fatal(err)
	}
	fields := strings.Fields(string(out)) // lease <id> granted with TTL(300s)
	if len(fields) != 5 || fields[4] != "TTL(300s)" {
		t.Fatalf("lease grant printed %q", out)
	}
	return fields[1]
}

// TestWatch compares what `etcdctl watch` prints, past events and live ones.
func TestWatch(t *testing.T) {
	for _, args := range []string{
		"watch a --rev 2 --prev-kv",
		"watch --prefix d --rev 2",
		"watch --prefix d --rev 1 -w json",
		"watch a z --rev 4 --prev-kv",
	} {
		t.Run(args, func(t *testing.T) {
			want := watched(t, harness.Etcd, args)
			if got := watched(t, harness.Keelson, args); got != want {
				t.Errorf("with etcd:\n%s\nwith keelson:\n%s", want, got)
			}
		})
	}
}

func watched(t *testing.T, backend harness.Backend, args string) string {
	t.Helper()
	c := newCtl(t, backend)
	for _, s := range []string{"put a 1", "put a 2", "del a", "put d1 x", "put d2 y"} {
		c.run(t, step{args: s})
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	cmd := c.command(ctx, strings.Fields(args)...)
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var printed bytes.Buffer
	read := func(until string) {
		t.Helper()
		buf := make([]byte, 4096)
		for !strings.Contains(printed.String(), until) {
			n, err := stdout.Read(buf)
			printed.Write(buf[:n])
			if err != nil {
				t.Fatalf("%s: %v before %q; so far:\n%s", backend, err, until, printed.String())
			}
		}
	}
	// The past events have come; now live ones, the last of which ends it.
	json := strings.Contains(args, "json")
	past, end := "d1", "d-end"
	if strings.HasPrefix(args, "watch a --rev") {
		past, end = "DELETE", "a-end"
	}
	if json {
		past, end = `"ZDI="`, `"ZC1lbmQ="`
	}
	read(past)
	for _, s := range []string{"put a 3", "put d1 z", "del d --prefix", "put a a-end", "put d d-end"} {
		c.run(t, step{args: s})
	}
	read(end)
	cancel()
	_ = cmd.Wait() // killed
	if json {
		return events(t, printed.String())
	}
	return c.normalize(printed.String())
}

// events renders the events of JSON responses: how they are grouped into
// responses depends on timing.
func events(t *testing.T, printed string) string {
	t.Helper()
	var b strings.Builder
	dec := json.NewDecoder(strings.NewReader(printed))
	for dec.More() {
		var resp struct{ Events []json.RawMessage }
		if err := dec.Decode(&resp); err != nil {
			t.Fatalf("%v in %s", err, printed)
		}
		for _, ev := range resp.Events {
			fmt.Fprintf(&b, "%s\n", ev)
		}
	}
	return b.String()
}
