package etcdctl

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
)

// fill writes keys whose orders by key, version, creation, modification and
// value are all different.
func (s *session) fill() {
	s.Helper()
	s.quiet(
		"put k/c 5", "put k/a 3", "put k/e 1", "put k/b 4", "put k/d 2",
		"put k/a 6", "put k/d 2", "put k/d 2", "put k/e 9", "del k/e", "put k/e 0", "put k/c 1", "put l 1", "del l", "put z last",
	)
}

// TestGet has every flag of `etcdctl get`, alone and together with others.
func TestGet(t *testing.T) {
	compare(t, func(s *session) {
		s.fill()
		for _, target := range []string{"CREATE", "KEY", "MODIFY", "VALUE", "VERSION", "version"} {
			for _, flags := range []string{"", "--order=ASCEND", "--order=DESCEND", "--order=descend --limit=2", "--keys-only"} {
				s.do("get k/ --prefix --sort-by=" + target + " " + flags)
			}
		}
		s.do(
			"get k/ --prefix --order=DESCEND", "get k/ --prefix --order=up", "get k/ --prefix --sort-by=size",
			"get k/c --from-key", "get k/c --from-key --limit 2", "get k/c k/e", "get k/e k/c", "get k/c k/c",
			"get k/c k/e --prefix", "get k/c --prefix --from-key", "get k/c k/e --from-key",
			"get k/ --prefix --keys-only --count-only", "get k/ --prefix --count-only", "get k/ --prefix --count-only -w fields",
			"get k/ --prefix --count-only -w json", "get k/ --prefix --limit 3 --count-only -w fields",
			"get k/ --prefix --print-value-only", "get k/ --prefix --print-value-only -w json",
			"get k/a --consistency=l", "get k/a --consistency=s", "get k/a --consistency=x",
			"get k/ --prefix --consistency=s --rev 5 -w json",
			"get k/ --prefix --rev 4", "get k/ --prefix --rev 1", "get k/ --prefix --rev 99", "get k/e --rev 11",
			"get k/ --prefix --min-mod-rev 6 -w json", "get k/ --prefix --max-mod-rev 6 -w json",
			"get k/ --prefix --min-mod-rev 5 --max-mod-rev 8 -w json", "get k/ --prefix --min-mod-rev 8 --max-mod-rev 5",
			"get k/ --prefix --min-create-rev 4 -w json", "get k/ --prefix --max-create-rev 4 -w json",
			"get k/ --prefix --min-create-rev 3 --max-create-rev 5 --limit 1 -w json", "get k/ --prefix --min-create-rev 5 --max-create-rev 3",
			"get k/ --prefix --min-create-rev 3 --max-mod-rev 9 --keys-only --sort-by=VALUE --order=DESCEND -w json",
			"get k/ --prefix --stream", "get k/ --prefix --stream -w json", "get k/ --prefix --stream --rev 4 --keys-only -w json",
			"get k/ --prefix --stream --limit 2 -w fields", "get k/ --prefix --stream --count-only -w fields", "get none --stream",
			"get k/ --prefix --stream --order=DESCEND", "get k/ --prefix --stream --sort-by=VERSION", "get k/ --prefix --stream --min-mod-rev 4",
			"get k/a -w fields", "get k/a -w simple", "get k/a -w json", "get k/a -w table", "get k/a -w yaml",
			"get k/a --hex", "get k/a --hex -w fields", "get k/a --hex -w json", "get k/ --prefix --hex --keys-only",
			"get none -w fields", "get none -w json", "get none --hex", "get",
		)
		for _, argv := range [][]string{
			{"get", "--prefix", ""},
			{"get", "--from-key", ""},
			{"get", "--from-key", "", "--limit", "2", "--order=DESCEND"},
			{"get", ""},
			{"get", "", "k/b"},
			{"get", "\x00", "\x00"},
			{"get", "k/d", "\x00"},
		} {
			s.step(step{argv: argv})
		}
	})
}

// TestFormats has what the commands print with -w fields, json and hex.
func TestFormats(t *testing.T) {
	compare(t, func(s *session) {
		s.fill()
		for _, format := range []string{"-w fields", "-w json", "-w simple", "-w table", "-w fields --hex", "-w json --hex", "--hex"} {
			s.do(
				"put k/a 7 "+format, "put k/a 8 --prev-kv "+format, "get k/ --prefix --limit 3 "+format,
				"del k/a --prev-kv "+format, "del none "+format, "put k/a 1 --ignore-value "+format, "put k/a 9 "+format,
				"lease timetolive 77 "+format, "lease list "+format, "lease revoke 77 "+format,
				"member list "+format, "alarm list "+format, "alarm disarm "+format,
				"auth status "+format, "user list "+format, "role list "+format,
			)
			s.step(step{args: "txn " + format, stdin: "mod(\"k/b\") > \"1\"\n\nput k/b 1\nget k/b\ndel k/b\n\n\n"})
		}
	})
}

// TestProtobuf has the bytes of -w protobuf, but for the identities in them.
func TestProtobuf(t *testing.T) {
	compare(t, func(s *session) {
		s.fill()
		for _, c := range []struct {
			args []string
			resp interface {
				proto.Message
				GetHeader() *pb.ResponseHeader
			}
		}{
			{[]string{"get", "k/", "--prefix", "-w", "protobuf"}, &pb.RangeResponse{}},
			{[]string{"get", "k/", "--prefix", "--limit", "2", "--hex", "-w", "protobuf"}, &pb.RangeResponse{}},
			{[]string{"get", "none", "-w", "protobuf"}, &pb.RangeResponse{}},
			{[]string{"put", "k/a", "10", "--prev-kv", "-w", "protobuf"}, &pb.PutResponse{}},
			{[]string{"del", "k/", "--prefix", "--prev-kv", "-w", "protobuf"}, &pb.DeleteRangeResponse{}},
			{[]string{"member", "list", "-w", "protobuf"}, &pb.MemberListResponse{}},
			{[]string{"lease", "list", "-w", "protobuf"}, &pb.LeaseLeasesResponse{}},
			{[]string{"alarm", "list", "-w", "protobuf"}, &pb.AlarmResponse{}},
		} {
			printed := s.stdout(c.args...)
			if err := proto.Unmarshal(printed, c.resp); err != nil {
				s.Fatalf("%q: %v in %q", c.args, err, printed)
			}
			if h := c.resp.GetHeader(); h != nil { // `lease list` prints none
				if h.ClusterId == 0 || h.MemberId == 0 || h.RaftTerm == 0 {
					s.Errorf("%q: the header is %v", c.args, h)
				}
				h.ClusterId, h.MemberId, h.RaftTerm = 0, 0, 0
			}
			if list, ok := c.resp.(*pb.MemberListResponse); ok {
				slices.SortFunc(list.Members, func(a, b *pb.Member) int { return strings.Compare(a.Name, b.Name) })
				for _, m := range list.Members {
					m.ID, m.PeerURLs = 0, nil
				}
			}
			// Its JSON has random blanks; those of the message are not in question.
			s.record(fmt.Sprint(c.args), s.normalize(blanks.ReplaceAllString(protojson.Format(c.resp), " ")))
		}
	})
}
