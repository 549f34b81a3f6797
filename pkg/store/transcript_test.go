package store

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"testing"

	"github.com/cockroachdb/datadriven"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"

	"github.com/keelson-io/keelson/pkg/eventlog"
	"github.com/keelson-io/keelson/pkg/eventlog/memlog"
)

// TestTranscripts plays the conversations in testdata. A command is a line;
// those of a txn are the lines below it (see parseTxn). Run with -rewrite to
// have the answers written anew, and read the diff.
func TestTranscripts(t *testing.T) {
	datadriven.Walk(t, "testdata", func(t *testing.T, path string) {
		p := &player{t: t, disk: &memlog.Disk{}}
		p.open()
		datadriven.RunTest(t, path, func(_ *testing.T, d *datadriven.TestData) string {
			var out strings.Builder
			lines := strings.Split(d.Input, "\n")
			if d.Cmd != "run" {
				lines = append([]string{d.FullCmd()}, lines...)
			}
			for lines = trimLines(lines); len(lines) > 0; {
				line := lines[0]
				lines = lines[1:]
				if d.Cmd == "run" {
					fmt.Fprintf(&out, "%s\n", line)
				}
				answer := p.play(line, &lines)
				for _, l := range trimLines(strings.Split(answer, "\n")) {
					fmt.Fprintf(&out, "  %s\n", l)
				}
			}
			return out.String()
		})
	})
}

func trimLines(lines []string) []string {
	var rest []string
	for _, l := range lines {
		if strings.TrimSpace(l) != "" {
			rest = append(rest, l)
		}
	}
	return rest
}

// player speaks for a client, and restarts the store where it is told to.
type player struct {
	t    *testing.T
	disk *memlog.Disk
	*fixture
	told int // events printed
}

func (p *player) open() { p.fixture, p.told = open(p.t, p.disk, Options{}), 0 }

// words is a command: its positional words and its name=value options.
type words struct {
	pos  []string
	opts map[string]string
}

func parseWords(line string) words {
	w := words{opts: map[string]string{}}
	for _, f := range strings.Fields(line) {
		if name, value, ok := strings.Cut(f, "="); ok && name != "" {
			w.opts[name] = value
		} else if strings.HasPrefix(f, "-") && len(f) > 1 {
			w.opts[f[1:]] = "true"
		} else {
			w.pos = append(w.pos, f)
		}
	}
	return w
}

// word returns a positional word; \0 is the zero byte.
func (w words) word(i int) []byte {
	if i >= len(w.pos) {
		return nil
	}
	return []byte(strings.ReplaceAll(w.pos[i], `\0`, "\x00"))
}

func (w words) int(name string) int64 {
	n, _ := strconv.ParseInt(w.opts[name], 10, 64)
	return n
}

func (w words) at(i int) int64 {
	n, _ := strconv.ParseInt(string(w.word(i)), 10, 64)
	return n
}

func (w words) put() *pb.PutRequest {
	return &pb.PutRequest{
		Key: w.word(1), Value: w.word(2), Lease: w.int("lease"), PrevKv: w.opts["prev"] != "",
		IgnoreValue: w.opts["ignore-value"] != "", IgnoreLease: w.opts["ignore-lease"] != "",
	}
}

func (w words) del() *pb.DeleteRangeRequest {
	return &pb.DeleteRangeRequest{Key: w.word(1), RangeEnd: w.word(2), PrevKv: w.opts["prev"] != ""}
}

func (w words) get() *pb.RangeRequest {
	return &pb.RangeRequest{
		Key: w.word(1), RangeEnd: w.word(2), Revision: w.int("rev"), Limit: w.int("limit"),
		SortTarget:     pb.RangeRequest_SortTarget(pb.RangeRequest_SortTarget_value[strings.ToUpper(w.opts["by"])]),
		SortOrder:      pb.RangeRequest_SortOrder(pb.RangeRequest_SortOrder_value[strings.ToUpper(w.opts["order"])]),
		KeysOnly:       w.opts["keys-only"] != "",
		CountOnly:      w.opts["count-only"] != "",
		MinModRevision: w.int("min-mod"), MaxModRevision: w.int("max-mod"),
		MinCreateRevision: w.int("min-create"), MaxCreateRevision: w.int("max-create"),
	}
}

func (p *player) play(line string, more *[]string) string {
	ctx := context.Background()
	w := parseWords(line)
	switch cmd := w.pos[0]; cmd {
	case "put":
		resp, err := p.Put(ctx, w.put())
		return show(err, func() string { return showPut(resp) })
	case "del":
		resp, err := p.DeleteRange(ctx, w.del())
		return show(err, func() string { return showDelete(resp) })
	case "get":
		resp, err := p.Range(ctx, w.get())
		return show(err, func() string { return showRange(resp) })
	case "txn":
		r := p.parseTxn(more)
		resp, err := p.Txn(ctx, r)
		return show(err, func() string { return showTxn(resp, "") })
	case "compact":
		resp, err := p.Compact(ctx, &pb.CompactionRequest{Revision: w.at(1), Physical: true})
		return show(err, func() string { return fmt.Sprintf("revision %d", resp.Header.Revision) })
	case "grant":
		_, err := p.LeaseGrant(ctx, w.at(1), w.at(2))
		return show(err, func() string { return "ok" })
	case "revoke":
		return show(p.LeaseRevoke(ctx, w.at(1)), func() string { return "ok" })
	case "leases":
		var out strings.Builder
		for _, l := range p.Leases() {
			fmt.Fprintf(&out, "%d ttl %d keys %q\n", l.ID, l.TTL, p.LeaseKeys(l.ID))
		}
		return out.String()
	case "alarm":
		resp, err := p.Alarm(ctx, &pb.AlarmRequest{
			Action: pb.AlarmRequest_AlarmAction(pb.AlarmRequest_AlarmAction_value[strings.ToUpper(w.pos[1])]),
			Alarm:  pb.AlarmType(pb.AlarmType_value[strings.ToUpper(w.pos[2])]), MemberID: 1,
		})
		return show(err, func() string { return showAlarms(resp.Alarms) })
	case "history":
		events, next, err := p.History(ctx, w.word(1), w.word(2), w.int("from"), 1000, true)
		return show(err, func() string { return showEvents(events) + fmt.Sprintf("next %d", next) })
	case "events":
		p.mu.Lock()
		defer p.mu.Unlock()
		events := p.events[p.told:]
		p.told = len(p.events)
		return showEvents(events)
	case "log":
		return p.showLog()
	case "fault":
		p.log.InjectFault(map[string]memlog.Fault{"persisted": memlog.FailPersisted, "unpersisted": memlog.FailUnpersisted}[w.pos[1]])
		return ""
	case "reopen":
		err := p.stop()
		p.open()
		return show(err, func() string {
			rev, compacted := p.Revision()
			return fmt.Sprintf("revision %d, compacted %d", rev, compacted)
		})
	}
	p.t.Fatalf("unknown command %q", line)
	return ""
}

// parseTxn reads a transaction from lines:
//
//	if <target> <key> <result> <value> [end=<range end>]
//	then
//	  <put, del, get, or txn … end>
//	else
//	  …
func (p *player) parseTxn(lines *[]string) *pb.TxnRequest {
	r := &pb.TxnRequest{}
	ops := &r.Success
	for len(*lines) > 0 {
		w := parseWords((*lines)[0])
		*lines = (*lines)[1:]
		op := &pb.RequestOp{}
		switch w.pos[0] {
		case "if":
			r.Compare = append(r.Compare, w.compare())
			continue
		case "then":
			continue
		case "else":
			ops = &r.Failure
			continue
		case "end":
			return r
		case "put":
			op.Request = &pb.RequestOp_RequestPut{RequestPut: w.put()}
		case "del":
			op.Request = &pb.RequestOp_RequestDeleteRange{RequestDeleteRange: w.del()}
		case "get":
			op.Request = &pb.RequestOp_RequestRange{RequestRange: w.get()}
		case "txn":
			op.Request = &pb.RequestOp_RequestTxn{RequestTxn: p.parseTxn(lines)}
		default:
			p.t.Fatalf("unknown operation %q", w.pos)
		}
		*ops = append(*ops, op)
	}
	return r
}

func (w words) compare() *pb.Compare {
	c := &pb.Compare{
		Key: w.word(2), RangeEnd: []byte(w.opts["end"]),
		Target: pb.Compare_CompareTarget(pb.Compare_CompareTarget_value[strings.ToUpper(w.pos[1])]),
		Result: map[string]pb.Compare_CompareResult{
			"is": pb.Compare_EQUAL, "not": pb.Compare_NOT_EQUAL, ">": pb.Compare_GREATER, "<": pb.Compare_LESS,
		}[w.pos[3]],
	}
	n := w.at(4)
	switch c.Target {
	case pb.Compare_VERSION:
		c.TargetUnion = &pb.Compare_Version{Version: n}
	case pb.Compare_CREATE:
		c.TargetUnion = &pb.Compare_CreateRevision{CreateRevision: n}
	case pb.Compare_MOD:
		c.TargetUnion = &pb.Compare_ModRevision{ModRevision: n}
	case pb.Compare_LEASE:
		c.TargetUnion = &pb.Compare_Lease{Lease: n}
	case pb.Compare_VALUE:
		c.TargetUnion = &pb.Compare_Value{Value: w.word(4)}
	}
	return c
}

func show(err error, ok func() string) string {
	if err != nil {
		return "error: " + err.Error()
	}
	return ok()
}

func showAlarms(alarms []*pb.AlarmMember) string {
	s := "alarms:"
	for _, a := range alarms {
		s += fmt.Sprintf(" %v of %d", a.Alarm, a.MemberID)
	}
	return s
}

func showKV(kv *mvccpb.KeyValue) string {
	s := fmt.Sprintf("%s=%s c%d m%d v%d", kv.Key, kv.Value, kv.CreateRevision, kv.ModRevision, kv.Version)
	if kv.Lease != 0 {
		s += fmt.Sprintf(" lease %d", kv.Lease)
	}
	return s
}

func showPut(r *pb.PutResponse) string {
	s := fmt.Sprintf("revision %d", r.Header.Revision)
	if r.PrevKv != nil {
		s += ", was " + showKV(r.PrevKv)
	}
	return s
}

func showDelete(r *pb.DeleteRangeResponse) string {
	s := fmt.Sprintf("revision %d, deleted %d", r.Header.Revision, r.Deleted)
	for _, kv := range r.PrevKvs {
		s += "\n" + showKV(kv)
	}
	return s
}

func showRange(r *pb.RangeResponse) string {
	s := fmt.Sprintf("revision %d, count %d", r.Header.Revision, r.Count)
	if r.More {
		s += ", more"
	}
	for _, kv := range r.Kvs {
		s += "\n" + showKV(kv)
	}
	return s
}

func showTxn(r *pb.TxnResponse, indent string) string {
	s := fmt.Sprintf("%srevision %d, succeeded %v", indent, r.Header.Revision, r.Succeeded)
	for _, op := range r.Responses {
		var line string
		switch op := op.Response.(type) {
		case *pb.ResponseOp_ResponsePut:
			line = "put: " + showPut(op.ResponsePut)
		case *pb.ResponseOp_ResponseDeleteRange:
			line = "del: " + showDelete(op.ResponseDeleteRange)
		case *pb.ResponseOp_ResponseRange:
			line = "get: " + showRange(op.ResponseRange)
		case *pb.ResponseOp_ResponseTxn:
			s += "\n" + indent + "- txn:\n" + showTxn(op.ResponseTxn, indent+"    ")
			continue
		}
		s += "\n" + indent + "- " + strings.ReplaceAll(line, "\n", "\n"+indent+"    ")
	}
	return s
}

func showEvents(events []*mvccpb.Event) string {
	var out strings.Builder
	for _, e := range events {
		if e.Type == mvccpb.Event_DELETE {
			fmt.Fprintf(&out, "delete %s m%d", e.Kv.Key, e.Kv.ModRevision)
		} else {
			fmt.Fprintf(&out, "put %s", showKV(e.Kv))
		}
		if e.PrevKv != nil {
			fmt.Fprintf(&out, ", was %s", showKV(e.PrevKv))
		}
		out.WriteString("\n")
	}
	return out.String()
}

func (p *player) showLog() string {
	var out strings.Builder
	_, err := p.disk.Open(nil).Load(context.Background(), func(r *eventlog.Record) error {
		fmt.Fprintf(&out, "%d %s", r.Seq, r.Kind)
		switch r.Kind {
		case eventlog.KindPut, eventlog.KindDelete:
			fmt.Fprintf(&out, " %s at %s", r.Key, r.Revision)
		case eventlog.KindCompact:
			fmt.Fprintf(&out, " %d", r.Revision.Main)
		case eventlog.KindLeaseGrant, eventlog.KindLeaseRevoke:
			fmt.Fprintf(&out, " %d", r.Lease)
		}
		out.WriteString("\n")
		return nil
	})
	if err != nil {
		p.t.Fatal(err)
	}
	return out.String()
}
