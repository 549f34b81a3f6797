package etcdctl

import (
	"strings"
	"testing"
)

var formats = []string{"", "-w simple", "-w json", "-w fields", "-w table", "-w protobuf", "-w json --hex", "-w fields --hex"}

// TestEndpoint has `etcdctl endpoint`, `member list` and `move-leader` in every
// format.
func TestEndpoint(t *testing.T) {
	compare(t, func(s *session) {
		s.do("endpoint hashkv", "endpoint hashkv --rev 1", "endpoint hashkv --rev 2")
		s.fill()
		for _, format := range formats {
			s.do("endpoint health "+format, "endpoint health --cluster "+format, "endpoint status --cluster "+format,
				"endpoint hashkv "+format, "endpoint hashkv --rev 7 "+format)
			if format != "-w protobuf" { // of `member list` it is in TestProtobuf
				s.do("endpoint status "+format, "member list "+format)
			}
		}
		s.do("member list --consistency=s", "member list --consistency=l",
			"move-leader", "move-leader 1", "move-leader not-an-id",
			"compaction 7", "endpoint hashkv --rev 6", "endpoint hashkv --rev 8", "endpoint hashkv", "endpoint hashkv --rev 99",
			"version", "defrag", "defrag --cluster", "endpoint", "endpoint none")
		// To the leader itself.
		id, _, _ := strings.Cut(string(s.stdout("member", "list")), ",")
		s.record("move-leader to itself", s.run(s.T, step{args: "move-leader " + id}))
		s.record("member promote", s.run(s.T, step{args: "member promote " + id}))
		s.do("member promote 1", "member update 1 --peer-urls=http://127.0.0.1:1", "member remove 1",
			"member add x --peer-urls=nothing", "member add x", "member add")
	})
}

// TestAlarm fills the quota and frees it again.
func TestAlarm(t *testing.T) {
	compare(t, func(s *session) {
		s.do("alarm list", "alarm disarm")
		big := step{argv: []string{"put", "big"}, stdin: strings.Repeat("x", 500_000)}
		var refused string
		for range 100 {
			if refused = s.run(s.T, big); !strings.HasPrefix(refused, "exit: <nil>") {
				break
			}
		}
		// How often it fits depends on how the data are stored.
		s.hide(`"revision":`+revision(s), `"revision":FULL`)
		s.hide(`"Revision" : `+revision(s), `"Revision" : FULL`)
		s.record("put, too often", refused)
		for _, format := range []string{"", "-w json", "-w fields", "-w table"} {
			s.do("alarm list "+format, "endpoint health "+format)
		}
		s.do("endpoint status", "put small 1", "get small", "lease grant 100")
		s.step(step{args: "txn", stdin: "\nget small\n\n\n"})
		s.step(step{args: "txn", stdin: "\nput small 1\n\n\n"})
		s.quiet("del big")
		rev := revision(s)
		s.quiet("compaction "+rev+" --physical", "defrag")
		s.do("put small 2", "alarm disarm", "alarm list", "endpoint health", "put small 3", "get small")
	}, "--quota-backend-bytes=3000000")
}

// revision is the current one.
func revision(s *session) string {
	s.Helper()
	_, after, found := strings.Cut(string(s.stdout("get", "none", "-w", "fields")), `"Revision" : `)
	if !found {
		s.Fatal("there is no revision")
	}
	rev, _, _ := strings.Cut(after, "\n")
	return rev
}
