package etcdctl

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/keelson-io/keelson/test/harness"
)

// session is a server and the transcript of what was done to it.
type session struct {
	ctl
	*testing.T
	srv        *harness.Server
	transcript strings.Builder
	hidden     []string // text and what stands for it, in turn
	noStderr   bool     // of what is started
}

// hide lets the transcript show instead of a text.
func (s *session) hide(text, instead string) { s.hidden = append(s.hidden, text, instead) }

func newSession(t *testing.T, backend harness.Backend, args ...string) *session {
	t.Helper()
	srv := startServer(t, backend, args...)
	return &session{ctl: ctlOf(t, srv), T: t, srv: srv}
}

// compare runs f on a fresh etcd and on a fresh keelson. Their transcripts have
// to be the same.
func compare(t *testing.T, f func(*session), args ...string) {
	t.Helper()
	var etcd, keelson *session
	t.Run("run", func(t *testing.T) {
		for backend, into := range map[harness.Backend]**session{harness.Etcd: &etcd, harness.Keelson: &keelson} {
			t.Run(string(backend), func(t *testing.T) {
				t.Parallel()
				s := newSession(t, backend, args...)
				f(s)
				*into = s
			})
		}
	})
	if etcd == nil || keelson == nil {
		t.Fatal("it did not run to its end on both")
	}
	want, got := etcd.transcript.String(), keelson.transcript.String()
	if want == "" {
		t.Fatal("nothing was compared")
	}
	if got != want {
		t.Errorf("-with etcd +with keelson\n%s", diff(want, got))
	}
}

// diff shows the commands whose output is not the same.
func diff(want, got string) string {
	w, g := strings.Split(want, entry), strings.Split(got, entry)
	var b strings.Builder
	for i := range max(len(w), len(g)) {
		var x, y string
		if i < len(w) {
			x = w[i]
		}
		if i < len(g) {
			y = g[i]
		}
		if x != y {
			fmt.Fprintf(&b, "- %s\n+ %s\n", x, y)
		}
	}
	return b.String()
}

// entry begins each entry of a transcript.
const entry = "$ "

func (s *session) record(what, printed string) {
	fmt.Fprintf(&s.transcript, "%s%s\n%s\n", entry, s.normalize(what), s.anyOrder(what, s.normalizeMore(printed)))
}

// do runs commands, each with its arguments separated by spaces.
func (s *session) do(commands ...string) {
	s.Helper()
	for _, args := range commands {
		s.step(step{args: args})
	}
}

// step runs one command and returns what it printed, without what differs
// from one server to the next.
func (s *session) step(st step) string {
	s.Helper()
	what := st.args
	if st.argv != nil {
		what = fmt.Sprintf("%q", st.argv)
	}
	if st.stdin != "" {
		what += fmt.Sprintf(" <<< %q", st.stdin)
	}
	printed := s.run(s.T, st)
	s.record(what, printed)
	return printed
}

// quiet runs commands that only prepare something. They must succeed.
func (s *session) quiet(commands ...string) {
	s.Helper()
	for _, args := range commands {
		if out := s.run(s.T, step{args: args}); !strings.HasPrefix(out, "exit: <nil>") {
			s.Fatalf("etcdctl %s: %s", args, out)
		}
	}
}

// stdout returns what a command prints, unchanged. It must succeed.
func (s *session) stdout(args ...string) []byte {
	s.Helper()
	ctx, cancel := context.WithTimeout(s.Context(), patience)
	defer cancel()
	out, err := s.command(ctx, args...).Output()
	if err != nil {
		s.Fatalf("etcdctl %q: %v", args, err)
	}
	return out
}

var (
	peerURL    = regexp.MustCompile(`(?m)^"PeerURL" : .*\n`)
	tableCell  = regexp.MustCompile(`│ [0-9]+%?( )`)
	quotaShare = regexp.MustCompile(`"[0-9]+%"|\b[0-9]+%`)
	moreIDs    = []struct {
		pattern *regexp.Regexp
		with    string
	}{
		{regexp.MustCompile(`("(?:cluster_id|member_id|leader|ID)":)"(?:ID|N?[0-9a-f]+)"`), `${1}"N"`},
		{regexp.MustCompile(`("(?:ClusterID|MemberID|Leader|ID)" : )(?:ID|N?[0-9a-f]+)`), "${1}N"},
		{regexp.MustCompile(`(memberID"?:)[0-9]+`), "${1}N"},
		{regexp.MustCompile(`([0-9.]+(?:µs|ms|s))\b`), "TIME"},
	}
	blanks = regexp.MustCompile(` +`)
)

// normalizeMore takes away what an id in hexadecimal and the numbers in the
// table of `endpoint status` leave of the server.
func (s *session) normalizeMore(printed string) string {
	// keelson without a cluster has no URL for peers.
	printed = peerURL.ReplaceAllString(printed, "")
	printed = strings.NewReplacer(s.hidden...).Replace(printed)
	lines := strings.Split(printed, "\n")
	for i, line := range lines {
		for _, m := range moreIDs {
			line = m.pattern.ReplaceAllString(line, m.with)
		}
		if strings.Contains(line, "│") {
			if strings.Contains(line, "3.7.3") {
				line = tableCell.ReplaceAllString(quotaShare.ReplaceAllString(line, "1"), "│ N$1")
			}
			line = blanks.ReplaceAllString(line, " ")
		}
		lines[i] = line
	}
	return strings.Join(lines, "\n")
}

// live is a command that runs until it is told to stop, or ends by itself.
type live struct {
	*session
	what string
	cmd  *exec.Cmd
	done chan error
	in   *os.File // of its standard input

	mu      sync.Mutex // protects the rest
	printed bytes.Buffer
	seen    int           // how much of printed was waited for
	changed chan struct{} // closed at the next change of printed
}

// Write takes what the command prints.
func (l *live) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	close(l.changed)
	l.changed = make(chan struct{})
	return l.printed.Write(p)
}

// start starts a command; env is added to its environment.
func (s *session) start(argv []string, env ...string) *live {
	s.Helper()
	stdin, in, err := os.Pipe()
	if err != nil {
		s.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(s.Context(), patience)
	l := &live{
		session: s, what: strings.Join(append(env, argv...), " "),
		cmd: s.command(ctx, argv...), done: make(chan error, 1), in: in, changed: make(chan struct{}),
	}
	l.cmd.Stdin, l.cmd.Stdout, l.cmd.Stderr = stdin, l, l
	if s.noStderr {
		l.cmd.Stderr = nil
	}
	l.cmd.Env = append(os.Environ(), env...)
	if err := l.cmd.Start(); err != nil {
		s.Fatal(err)
	}
	_ = stdin.Close()
	ended := make(chan struct{})
	go func() {
		l.done <- l.cmd.Wait()
		close(ended)
	}()
	s.Cleanup(func() {
		cancel()
		<-ended
		_ = in.Close()
	})
	return l
}

// wait waits until the command has printed the text, after what was waited for
// before.
func (l *live) wait(text string) {
	l.Helper()
	limit := time.After(patience)
	for {
		l.mu.Lock()
		if at := bytes.Index(l.printed.Bytes()[l.seen:], []byte(text)); at >= 0 {
			l.seen += at + len(text)
			l.mu.Unlock()
			return
		}
		changed, so := l.changed, l.printed.String()
		l.mu.Unlock()
		select {
		case <-changed:
		case <-limit:
			l.Fatalf("etcdctl %s never prints %q but:\n%s", l.what, text, so)
		}
	}
}

// type types lines into the command.
func (l *live) typeIn(lines ...string) {
	l.Helper()
	for _, line := range lines {
		if _, err := l.in.WriteString(line + "\n"); err != nil {
			l.Fatal(err)
		}
	}
}

// signal sends the command a signal, as a person with Ctrl-C does.
func (l *live) signal(sig os.Signal) {
	l.Helper()
	if err := l.cmd.Process.Signal(sig); err != nil {
		l.Fatal(err)
	}
}

// end waits until the command has ended and returns how, and what it printed.
func (l *live) end() string {
	l.Helper()
	select {
	case err := <-l.done:
		l.mu.Lock()
		defer l.mu.Unlock()
		return fmt.Sprintf("exit: %v\n%s", err, l.normalize(l.printed.String()))
	case <-time.After(patience):
		l.Fatalf("etcdctl %s does not end", l.what)
		return ""
	}
}

// finish is end, written into the transcript.
func (l *live) finish() {
	l.Helper()
	l.record(l.what, l.end())
}
