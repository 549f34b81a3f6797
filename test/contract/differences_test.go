package contract

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"strings"
	"testing"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"google.golang.org/grpc/status"

	"github.com/keelson-io/keelson/test/harness"
)

// difference is something that keelson does not do as etcd does, on purpose.
type difference struct {
	name          string
	run           func(*env) string
	etcd, keelson string
	args          []string // of the server
	alone         bool     // only without a cluster: a node of one does as etcd does
}

// differences are those that can be shown with both; docs/compatibility.md has
// them all.
var differences = []difference{
	{
		name: "invalid_before_quota", run: invalidBeforeQuota, args: []string{"--quota-backend-bytes=2097152"},
		etcd: textNoSpace, keelson: textNoKey,
	},
	{
		name: "quota_of_what_is_in_use", run: quotaInUse, args: []string{"--quota-backend-bytes=2097152"},
		etcd: textNoSpace, keelson: "",
	},
	{name: "hash_is_of_the_content", run: hashOfContent, etcd: "false", keelson: "true"},
	{name: "snapshot_for_an_older_etcd", run: storageVersion, etcd: "3.7.0", keelson: "3.6.0"},
	{name: "hashkv_at_a_compaction", run: hashAtCompaction, etcd: "compact revision -1", keelson: "compact revision 3"},
	{name: "overtaken_in_a_compacted_revision", run: overtaken, etcd: "DELETE", keelson: "PUT DELETE"},
	{name: "stream_by_another_target", run: streamByTarget, etcd: "mixed up", keelson: "as Range"},
	{name: "raft_term_and_index", run: raftNumbers, etcd: "a term of Raft", keelson: "term 1, index +2 after two writes", alone: true},
	{name: "no_peer_urls", run: peerURLs, etcd: "1", keelson: "0", alone: true},
}

func TestDifferences(t *testing.T) {
	for _, backend := range harness.Backends(t) {
		t.Run(string(backend), func(t *testing.T) {
			for _, d := range differences {
				t.Run(d.name, func(t *testing.T) {
					t.Parallel()
					e := newEnv(t, backend, d.args...)
					want := d.etcd
					if backend == harness.Keelson && (!d.alone || len(e.srv.Nodes) == 1) {
						want = d.keelson
					}
					equal(e, string(backend), d.run(e), want)
				})
			}
		})
	}
}

// fillQuota puts values until one is refused, and returns the last revision.
func (e *env) fillQuota() int64 {
	e.Helper()
	value := []byte(strings.Repeat("v", 256<<10))
	for i := range 100 {
		if _, err := e.kv.Put(e.ctx, &pb.PutRequest{Key: []byte(fmt.Sprintf("k%02d", i)), Value: value}); err != nil {
			e.fails("past the quota", err, status.Code(err), textNoSpace)
			return e.rev()
		}
	}
	e.Fatal("there is no quota")
	return 0
}

func text(err error) string { return status.Convert(err).Message() }

func invalidBeforeQuota(e *env) string {
	e.fillQuota()
	_, err := e.kv.Put(e.ctx, &pb.PutRequest{Value: make([]byte, 1<<20)})
	return text(err)
}

// quotaInUse puts again after what filled the quota was deleted and compacted,
// with no defragmentation.
func quotaInUse(e *env) string {
	rev := e.fillQuota()
	e.del("k", "l")
	e.compact(rev + 1)
	e.disarmAll()
	_, err := e.kv.Put(e.ctx, &pb.PutRequest{Key: []byte("again"), Value: make([]byte, 1<<20)})
	return text(err)
}

func hashOfContent(e *env) string {
	e.put("a", "1")
	hash, err := e.maint.Hash(e.ctx, &pb.HashRequest{})
	must(e, err)
	kv, err := e.maint.HashKV(e.ctx, &pb.HashKVRequest{})
	must(e, err)
	return fmt.Sprint(hash.Hash == kv.Hash)
}

func hashAtCompaction(e *env) string {
	e.put("a", "1")
	e.put("a", "2")
	e.put("a", "3")
	e.compact(3)
	resp, err := e.maint.HashKV(e.ctx, &pb.HashKVRequest{Revision: 3})
	must(e, err)
	return fmt.Sprint("compact revision ", resp.CompactRevision)
}

// overtaken watches from a compacted revision that has changed a key twice.
func overtaken(e *env) string {
	w := e.watch()
	w.create(all()) // the newest events are kept for somebody
	resp := e.txn(&pb.TxnRequest{Success: []*pb.RequestOp{opPut("k", "1"), opDel("a", "\x00")}})
	e.compact(resp.Header.Revision)
	late := e.watch()
	late.create(&pb.WatchCreateRequest{Key: []byte("k"), StartRevision: resp.Header.Revision})
	var types []string
	for _, ev := range late.next().Events {
		types = append(types, ev.Type.String())
	}
	return strings.Join(types, " ")
}

// streamByTarget streams by a target that is not the key, without an order.
func streamByTarget(e *env) string {
	e.txn(&pb.TxnRequest{Success: puts(0, 50)})
	e.put("k0005", "moved to the end")
	e.put("a", "with the last revision and the first key")
	req := &pb.RangeRequest{Key: []byte("a"), RangeEnd: []byte("z"), SortTarget: pb.RangeRequest_MOD, Limit: 60}
	e.put("k0048", "the last of the first chunk is not the greatest key")
	var got []*mvccpb.KeyValue
	for _, c := range e.stream(req) {
		got = append(got, c.Kvs...)
	}
	if want := e.rng(req); keys(got) != keys(want.Kvs) {
		return "mixed up"
	}
	return "as Range"
}

func raftNumbers(e *env) string {
	before, err := e.maint.Status(e.ctx, &pb.StatusRequest{})
	must(e, err)
	e.put("a", "1")
	e.grant(0, 100)
	after, err := e.maint.Status(e.ctx, &pb.StatusRequest{})
	must(e, err)
	equal(e, "the term in the header", after.Header.RaftTerm, after.RaftTerm)
	if gained := after.RaftIndex - before.RaftIndex; gained < 2 || after.RaftAppliedIndex > after.RaftIndex {
		e.Errorf("two writes have moved the index by %d, to %d, of which %d is applied", gained, after.RaftIndex, after.RaftAppliedIndex)
	}
	if after.RaftTerm > 1 { // the index of Raft moves by itself, too
		return "a term of Raft"
	}
	equal(e, "applied index", after.RaftAppliedIndex, after.RaftIndex)
	return fmt.Sprintf("term %d, index +%d after two writes", after.RaftTerm, after.RaftIndex-before.RaftIndex)
}

func peerURLs(e *env) string {
	list, err := e.cluster.MemberList(e.ctx, &pb.MemberListRequest{})
	must(e, err)
	return fmt.Sprint(len(list.Members[0].PeerURLs))
}

// priorKnowledge asks for /health as `curl --http2-prior-knowledge` does: HTTP/2
// in plain text is taken for gRPC.
func priorKnowledge(e *env) {
	var dialer net.Dialer
	transport := &http.Transport{
		Protocols: new(http.Protocols),
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return dialer.DialContext(ctx, "unix", e.srv.Socket)
		},
	}
	transport.Protocols.SetUnencryptedHTTP2(true)
	defer transport.CloseIdleConnections()
	req, err := http.NewRequestWithContext(e.ctx, http.MethodGet, "http://localhost/health", http.NoBody)
	must(e, err)
	resp, err := (&http.Client{Transport: transport}).Do(req)
	must(e, err)
	must(e, resp.Body.Close())
	equal(e, "status", resp.StatusCode, http.StatusUnsupportedMediaType)
}
