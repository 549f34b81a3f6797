package etcdctl

import (
	"fmt"
	"io"
	"net"
	"os"
	"regexp"
	"strings"
	"sync"
	"testing"

	"github.com/keelson-io/keelson/test/harness"
)

// TestMirror has `etcdctl make-mirror` in all directions between etcd and
// keelson: what arrives is the same.
func TestMirror(t *testing.T) {
	for _, flags := range []string{"", "--prefix k/", "--prefix k/ --dest-prefix copy/", "--prefix k/ --no-dest-prefix", "--rev 12", "--max-txn-ops 2"} {
		t.Run("make-mirror "+flags, func(t *testing.T) {
			t.Parallel()
			want := mirrored(t, harness.Etcd, harness.Etcd, flags)
			for _, pair := range [][2]harness.Backend{
				{harness.Keelson, harness.Keelson}, {harness.Etcd, harness.Keelson}, {harness.Keelson, harness.Etcd},
			} {
				if got := mirrored(t, pair[0], pair[1], flags); got != want {
					t.Errorf("from etcd to etcd:\n%s\nfrom %s to %s:\n%s", want, pair[0], pair[1], got)
				}
			}
		})
	}
}

func mirrored(t *testing.T, from, to harness.Backend, flags string) string {
	t.Helper()
	source, dest := newSession(t, from), newSession(t, to)
	source.fill()
	m := source.start(append(append([]string{"make-mirror"}, strings.Fields(flags)...), dest.endpoint))
	if !strings.Contains(flags, "--rev") {
		waitValue(dest, "4") // of k/b: what was there before has begun to come
	}
	source.quiet("put k/f live", "put z live", "del k/b")
	ops := make([]string, 100)
	for i := range ops {
		ops[i] = fmt.Sprintf("put k/many%02d 1\n", i)
	}
	if out := source.run(t, step{args: "txn", stdin: "\n" + strings.Join(ops, "") + "del k/d\n\n\n"}); !strings.Contains(out, "SUCCESS") {
		t.Fatal(out)
	}
	source.quiet("put k/last end")
	waitValue(dest, "end")
	m.signal(os.Kill)
	m.end()
	// Revisions at the destination depend on how the events were grouped.
	return dest.run(t, step{argv: []string{"get", "", "--prefix"}})
}

// waitValue waits until some key has the value.
func waitValue(s *session, value string) {
	s.Helper()
	for s.Context().Err() == nil {
		out := string(s.stdout("get", "--print-value-only", "--prefix", ""))
		if strings.Contains("\n"+out, "\n"+value+"\n") {
			return
		}
	}
	s.Fatalf("no key ever has the value %q", value)
}

// TestMirrorErrors has a mirror that cannot be made.
func TestMirrorErrors(t *testing.T) {
	compare(t, func(s *session) {
		s.fill()
		s.quiet("compaction 9")
		s.do("make-mirror", "make-mirror --prefix k/ --dest-prefix x --no-dest-prefix "+s.endpoint, "make-mirror --rev 4 "+s.endpoint)
	})
}

// overTCP returns an HTTP endpoint that leads to the server's socket.
func (s *session) overTCP() string {
	s.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		s.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			client, err := l.Accept()
			if err != nil {
				return // closed below
			}
			server, err := net.Dial("unix", s.srv.Socket)
			if err != nil {
				_ = client.Close()
				continue
			}
			for _, pair := range [][2]net.Conn{{client, server}, {server, client}} {
				wg.Go(func() {
					_, _ = io.Copy(pair[0], pair[1]) // ends with either side
					_ = pair[0].Close()
				})
			}
		}
	})
	s.Cleanup(func() {
		_ = l.Close()
		s.srv.Kill() // ends the connections
		wg.Wait()
	})
	return "http://" + l.Addr().String()
}

var (
	perfResult  = regexp.MustCompile(`(?m)^(PASS: |FAIL: )?(Throughput|Slowest request|Stddev) .*$`)
	compactedAt = regexp.MustCompile(`(?m)^(Compact(?:ing|ed) with revision) \d+`)
	perfVerdict = regexp.MustCompile(`(?m)^(PASS|FAIL)$`)
)

// TestCheckPerf has `etcdctl check perf`, interrupted after some hundred writes.
// How fast they are is not in question.
func TestCheckPerf(t *testing.T) {
	compare(t, func(s *session) {
		s.do("check perf --load=none", "check")
		s.noStderr = true // where the progress bar is
		perf := s.start([]string{"check", "perf", "--auto-compact", "--auto-defrag"})
		s.waitKeys("/etcdctl-check-perf/", 300)
		perf.signal(os.Interrupt)
		_, printed, _ := strings.Cut(perf.end(), "\n") // the exit status says if it was fast enough
		printed = perfVerdict.ReplaceAllString(perfResult.ReplaceAllString(printed, "$2"), "VERDICT")
		s.record("check perf", compactedAt.ReplaceAllString(printed, "$1 N"))
		s.do("get /etcdctl-check-perf/ --prefix")
		s.quiet("put /etcdctl-check-perf/1 1")
		s.do("check perf")
	})
}

// TestCheckDatascale has `etcdctl check datascale`, which reads the process's
// memory from /metrics.
func TestCheckDatascale(t *testing.T) {
	var printed [2]string
	for i, backend := range []harness.Backend{harness.Etcd, harness.Keelson} {
		s := newSession(t, backend)
		s.endpoint = s.overTCP()
		s.noStderr = true // where the progress bar is
		check := s.start([]string{"check", "datascale", "--load=s", "--auto-compact", "--auto-defrag"})
		out := strings.ReplaceAll(check.end(), "-SIZE", "SIZE") // it may have shrunk
		if !strings.Contains(out, "PASS: Approximate system memory used : SIZE.") {
			t.Errorf("with %s: %s", backend, out)
		}
		s.record("check datascale", out)
		s.do("get /etcdctl-check-datascale/ --prefix", "check datascale --load=none")
		s.quiet("put /etcdctl-check-datascale/1 1")
		s.do("check datascale")
		printed[i] = s.transcript.String()
	}
	if printed[0] != printed[1] {
		t.Errorf("-with etcd +with keelson\n%s", diff(printed[0], printed[1]))
	}
}
