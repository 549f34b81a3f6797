package etcdctl

import (
	"os"
	"strings"
	"syscall"
	"testing"
)

// TestLock has `etcdctl lock`: one holder, one that waits, one that runs a
// command.
func TestLock(t *testing.T) {
	compare(t, func(s *session) {
		first := s.start([]string{"lock", "door"})
		first.wait("door/")
		second := s.start([]string{"lock", "door", "--ttl", "60"})
		s.waitKeys("door", 2)
		s.do("get door --prefix --count-only -w fields")
		first.signal(os.Interrupt)
		first.finish()
		second.wait("door/")
		second.signal(syscall.SIGTERM)
		second.finish()
		s.do("get door --prefix", "lock", "lock door -- false")
		for _, script := range []string{
			"echo held $ETCD_LOCK_REV",
			"case $ETCD_LOCK_KEY in door/*) echo the key is below the name;; esac",
			"exit 7",
		} {
			s.step(step{argv: []string{"lock", "door", "sh", "-c", script}})
		}
		s.do("get door --prefix")
		// Who dies with the lock gives it back when its session has expired.
		dead := s.start([]string{"lock", "door", "--ttl", "1"})
		dead.wait("door/")
		dead.signal(os.Kill)
		s.record("killed", strings.SplitN(dead.end(), "\n", 2)[0])
		s.step(step{argv: []string{"lock", "door", "echo", "mine", "at", "last"}})
		// A lock that is taken away.
		lost := s.start([]string{"lock", "door"})
		lost.wait("door/")
		_, lease, _ := strings.Cut(string(s.stdout("get", "door/", "--prefix", "--keys-only")), "/")
		s.quiet("lease revoke " + strings.TrimSpace(lease))
		lost.finish()
	})
}

// waitKeys waits until there are so many keys with the prefix.
func (s *session) waitKeys(prefix string, count int) {
	s.Helper()
	for s.Context().Err() == nil {
		if strings.Count(string(s.stdout("get", prefix, "--prefix", "--keys-only")), prefix) >= count {
			return
		}
	}
	s.Fatalf("there are never %d keys below %s", count, prefix)
}

// TestElect has `etcdctl elect`: a leader, a candidate and an observer.
func TestElect(t *testing.T) {
	compare(t, func(s *session) {
		s.do("elect", "elect office", "elect -l office one")
		one := s.start([]string{"elect", "office", "one"})
		one.wait("one\n")
		observer := s.start([]string{"elect", "-l", "office"})
		observer.wait("one\n")
		two := s.start([]string{"elect", "office", "two"})
		s.waitKeys("office", 2)
		one.signal(os.Interrupt)
		one.finish()
		two.wait("two\n")
		observer.wait("two\n")
		two.signal(os.Interrupt)
		two.finish()
		observer.signal(os.Interrupt)
		observer.finish()
		s.do("get office --prefix")
	})
}

// TestWatchInteractive has `etcdctl watch -i`, with progress requests, several
// watches on one stream and everything that is not a watch.
func TestWatchInteractive(t *testing.T) {
	compare(t, func(s *session) {
		s.fill()
		w := s.start([]string{"watch", "-i"})
		w.typeIn("watch k/a --rev 2")
		w.wait("\n6\n")
		w.typeIn("progress")
		w.wait("progress notify: 16")
		w.typeIn("watch k/e l --rev 4 --prev-kv")
		w.wait("PUT\nk/e\n0\n")
		w.typeIn("watch m --prefix")
		w.typeIn("", "get k", "watch", "watch a b --prefix")
		w.wait("mutually exclusive")
		w.typeIn("progress")
		for range 3 { // each watch says so, in its own time
			w.wait("progress notify: 16")
		}
		s.quiet("put m/1 x")
		w.wait("m/1\nx\n")
		s.quiet("put k/a live")
		w.wait("live\n")
		s.quiet("del m/1")
		w.wait("DELETE\nm/1\n")
		w.typeIn("watch n -- echo an event")
		w.typeIn("progress")
		for range 4 {
			w.wait("progress notify: 19")
		}
		s.quiet("put n x")
		w.wait("an event")
		s.quiet("compaction 19")
		w.typeIn("watch k/a --rev 3")
		w.wait("canceled")
		_ = w.in.Close()
		w.finish()
	})
}

// TestWatchCommand has the other forms of `etcdctl watch`.
func TestWatchCommand(t *testing.T) {
	compare(t, func(s *session) {
		s.fill()
		ended := func(until string, argv []string, env ...string) {
			s.Helper()
			w := s.start(argv, env...)
			w.wait(until)
			w.signal(os.Kill)
			w.finish()
		}
		ended("l\n\n", []string{"watch", "l", "--rev", "2"})
		ended("k/e\n0\n", []string{"watch", "--rev", "2"}, "ETCDCTL_WATCH_KEY=k/e")
		ended("k/e\n0\n", []string{"watch", "--rev", "2"}, "ETCDCTL_WATCH_KEY=k/d", "ETCDCTL_WATCH_RANGE_END=k/z")
		ended(`"Lease" : 0`+"\n", []string{"watch", "k/e", "k/f", "--rev", "12", "-w", "fields"})
		ended("}\n", []string{"watch", "k/e", "--rev", "12", "-w", "json", "--prev-kv"})
		ended("\\x30\n", []string{"watch", "k/e", "--rev", "12", "--hex"})
		ended(`"DELETE", "l", ""`, []string{"watch", "l", "--rev", "2", "--",
			"sh", "-c", `echo $ETCD_WATCH_EVENT_TYPE, $ETCD_WATCH_KEY, $ETCD_WATCH_VALUE`})
		ended("last\n", []string{"watch", "", "--prefix", "--rev", "14"})
		s.quiet("compaction 10")
		for _, argv := range [][]string{
			{"watch", "k/a", "--rev", "3"},
			{"watch"},
			{"watch", "k/a", "--"},
			{"watch", "k/e", "k/a"},
			{"watch", "a", "b", "--prefix"},
			{"watch", "a", "--", "false"},
		} {
			if argv[len(argv)-1] == "false" {
				// With a revision: the put may come before the watch does.
				w := s.start([]string{"watch", "a", "--rev", "11", "--", "false"})
				s.quiet("put a 1")
				w.finish()
				continue
			}
			w := s.start(argv)
			w.finish()
		}
	})
}

// TestKeepAlive has `lease keep-alive` of a lease that lives, is revoked, and
// never was.
func TestKeepAlive(t *testing.T) {
	compare(t, func(s *session) {
		lines := strings.Fields(string(s.stdout("lease", "grant", "6")))
		id := lines[1]
		alive := s.start([]string{"lease", "keep-alive", id})
		alive.wait("TTL(6)\n")
		alive.wait("TTL(6)\n")
		s.quiet("lease revoke " + id)
		printed := alive.end()
		// How often it was renewed depends on when it was revoked.
		for again := "lease ID keepalived with TTL(6)\n"; strings.Contains(printed, again+again); {
			printed = strings.ReplaceAll(printed, again+again, again)
		}
		s.record("keep-alive until it is revoked", printed)
		s.do("lease keep-alive 77", "lease keep-alive --once 77", "lease keep-alive", "lease keep-alive x", "lease grant", "lease grant x",
			"lease grant 0", "lease grant -- -5", "lease grant 9000000001", "lease revoke", "lease timetolive", "lease")
		one := s.start([]string{"lease", "keep-alive", s.grant(s.T), "-w", "json"})
		one.wait("}\n")
		one.signal(syscall.SIGTERM)
		one.finish()
	})
}

// TestTxn has `etcdctl txn` in both modes with every compare and operation.
func TestTxn(t *testing.T) {
	compare(t, func(s *session) {
		s.fill()
		for _, compare := range []string{
			`mod("k/a") = "7"`, `mod("k/a") < "7"`, `mod("k/a") > "6"`, `mod("k/a") != "7"`,
			`create("k/a") = "3"`, `c("k/a") > "3"`, `create("none") = "0"`,
			`version("k/a") = "2"`, `ver("k/d") > "2"`, `version("none") = "0"`,
			`value("k/a") = "6"`, `val("k/a") < "7"`, `value("none") = ""`, `value("k/e") != "0"`,
			`lease("k/a") = "0"`, `lease("k/a") > "0"`,
			`mod("k/a") ~ "7"`, `size("k/a") = "1"`, `mod("k/a") = "x"`, `mod(k/a) = 7`, `mod "k/a"`,
		} {
			for _, format := range []string{"", "-w json", "-w fields"} {
				s.step(step{args: "txn " + format, stdin: compare + "\n\nget k/a\n\nget k/b\n\n"})
			}
			s.step(step{args: "txn -i", stdin: compare + "\n\nget k/a\n\nget k/b\n\n"})
		}
		for _, in := range []string{
			"mod(\"k/a\") = \"7\"\nver(\"k/a\") = \"2\"\n\nput k/a \"a value with blanks\"\nput 'k/new key' 1\nget k/ --prefix --keys-only\n\n\n",
			"\nput k/a 1 --prev-kv\nget k/a\ndel k/b --prev-kv\ndel none\nget k/ --prefix --count-only\n\n\n",
			"ver(\"none\") > \"0\"\n\n\ndel k/ --prefix --prev-kv\nput k/z 1\n\n",
			"\nput p 1 --lease=77\n\n\n", "\nput none --ignore-value\n\n\n", "\nget k/a --rev 99\n\n\n", "\nget k/a --rev 3\n\n\n",
			"\nput p 1\nput p 2\n\n\n", "\nput p 1\ndel p\n\n\n", "\nfrob p\n\n\n", "\nput\n\n\n", "\nget k/z", "", "\n\n\n",
			"\n" + strings.Repeat("get k/z\n", 129) + "\n\n",
		} {
			s.step(step{args: "txn -i", stdin: in})
			s.step(step{args: "txn -w json", stdin: in})
		}
		s.do("txn argument", "get k --from-key -w json")
	})
}
