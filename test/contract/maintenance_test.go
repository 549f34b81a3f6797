package contract

import (
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"slices"
	"strings"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"golang.org/x/net/http2"
	"google.golang.org/grpc/codes"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
)

var maintenance = []statement{
	{name: "37_status", run: serverStatus},
	{name: "37_headers", run: headers},
	{name: "38_quota", run: quota, args: []string{"--quota-backend-bytes=2097152"}},
	{name: "38_quota_of_a_txn", run: quotaOfTxn, args: []string{"--quota-backend-bytes=2097152"}},
	{name: "38_quota_of_a_grant", run: quotaOfGrant, args: []string{"--quota-backend-bytes=2097152"}},
	{name: "38_alarms", run: alarms},
	{name: "38_corrupt", run: corruptAlarm},
	{name: "39_members", run: members},
	{name: "40_health_service", run: healthService},
	{name: "40_too_many_pings", run: tooManyPings},
	{name: "40_connection", run: connectionSettings},
	{name: "40_pings_with_a_stream", run: pingsWithStream},
	{name: "40_server_pings", run: serverPings, args: []string{"--grpc-keepalive-interval=1s", "--grpc-keepalive-timeout=1s"}},
	{name: "41_http", run: httpEndpoints},
}

func serverStatus(e *env) {
	e.put("a", "1")
	st, err := e.maint.Status(e.ctx, &pb.StatusRequest{})
	must(e, err)
	equal(e, "version", st.Version, "3.7.3")
	equal(e, "storage version", st.StorageVersion, "3.7.0")
	equal(e, "it is led by a member", slices.ContainsFunc(e.members(), func(m *pb.Member) bool { return m.ID == st.Leader }), true)
	equal(e, "quota", st.DbSizeQuota, 2<<30)
	equal(e, "learner", st.IsLearner, false)
	equal(e, "errors", len(st.Errors), 0)
	equal(e, "revision", st.Header.Revision, 2)
	equal(e, "downgrade", st.DowngradeInfo.GetEnabled(), false)
	if st.DbSize <= 0 || st.DbSizeInUse <= 0 || st.DbSizeInUse > st.DbSize {
		e.Errorf("db_size %d, in use %d", st.DbSize, st.DbSizeInUse)
	}
	if st.RaftIndex == 0 || st.RaftTerm == 0 || st.RaftAppliedIndex == 0 || st.RaftAppliedIndex > st.RaftIndex {
		e.Errorf("raft index %d, term %d, applied %d", st.RaftIndex, st.RaftTerm, st.RaftAppliedIndex)
	}
	_, err = e.maint.Defragment(e.ctx, &pb.DefragmentRequest{})
	must(e, err)
	equal(e, "value after a defragmentation", string(e.get("a").Kvs[0].Value), "1")
	hash, err := e.maint.Hash(e.ctx, &pb.HashRequest{})
	must(e, err)
	equal(e, "revision of the hash", hash.Header.Revision, 2)
}

// headers checks that a server has one identity, and keeps it over a crash.
func headers(e *env) {
	type identity struct{ cluster, member uint64 }
	of := func(h *pb.ResponseHeader) identity {
		if h.ClusterId == 0 || h.MemberId == 0 || h.RaftTerm == 0 {
			e.Errorf("a header lacks something: %v", h)
		}
		return identity{h.ClusterId, h.MemberId}
	}
	want := of(e.get("a").Header)
	put, err := e.kv.Put(e.ctx, &pb.PutRequest{Key: []byte("a"), Value: []byte("1")})
	must(e, err)
	equal(e, "put", of(put.Header), want)
	grant := e.grant(0, 100)
	equal(e, "grant", of(grant.Header), want)
	list, err := e.cluster.MemberList(e.ctx, &pb.MemberListRequest{Linearizable: true})
	must(e, err)
	equal(e, "member list", of(list.Header), want)
	equal(e, "members", len(list.Members), len(e.srv.Nodes))
	name := "default"
	if len(e.srv.Nodes) > 1 {
		name = "node0"
	}
	i := slices.IndexFunc(list.Members, func(m *pb.Member) bool { return m.ID == want.member })
	if i < 0 {
		e.Fatalf("the server is not among the members: %v", list.Members)
	}
	equal(e, "name", list.Members[i].Name, name)
	for len(e.srv.Nodes) > 1 && len(list.Members[i].ClientURLs) == 0 { // a node of a cluster makes them known when it can write
		time.Sleep(10 * time.Millisecond)
		list, err = e.cluster.MemberList(e.ctx, &pb.MemberListRequest{})
		must(e, err)
	}
	equal(e, "client URLs", strings.Join(list.Members[i].ClientURLs, " "), e.srv.Endpoint)
	e.srv.Restart()
	equal(e, "after a crash", of(e.get("a").Header), want)
}

func quota(e *env) {
	e.grant(77, 1000)
	value := strings.Repeat("v", 256<<10)
	var rev int64
	var err error
	for i := range 100 {
		var resp *pb.PutResponse
		resp, err = e.kv.Put(e.ctx, &pb.PutRequest{Key: []byte(fmt.Sprintf("k%02d", i)), Value: []byte(value)})
		if err != nil {
			break
		}
		rev = resp.Header.Revision
	}
	e.fails("past the quota", err, codes.ResourceExhausted, textNoSpace)
	if rev < 4 {
		e.Errorf("2 MiB held %d values of 256 KiB", rev-1)
	}
	equal(e, "revision", e.rev(), rev)
	raised, err := e.maint.Alarm(e.ctx, &pb.AlarmRequest{})
	must(e, err)
	if len(raised.Alarms) == 0 || len(raised.Alarms) > len(e.srv.Nodes) { // each node may have raised it
		e.Fatalf("alarms: %v", raised.Alarms)
	}
	equal(e, "alarm", raised.Alarms[0].Alarm, pb.AlarmType_NOSPACE)
	e.noSpace(rev)
	_, err = e.lease.LeaseRevoke(e.ctx, &pb.LeaseRevokeRequest{ID: 77})
	must(e, err)
	// Make room, disarm, go on.
	e.del("k", "l")
	e.compact(rev + 1)
	_, err = e.maint.Defragment(e.ctx, &pb.DefragmentRequest{})
	must(e, err)
	e.disarmAll()
	e.put("small", "again")
}

// disarmAll disarms what alarms there are of NOSPACE.
func (e *env) disarmAll() {
	e.Helper()
	raised, err := e.maint.Alarm(e.ctx, &pb.AlarmRequest{Alarm: pb.AlarmType_NOSPACE})
	must(e, err)
	for _, alarm := range raised.Alarms {
		_, err := e.maint.Alarm(e.ctx, &pb.AlarmRequest{
			Action: pb.AlarmRequest_DEACTIVATE, MemberID: alarm.MemberID, Alarm: pb.AlarmType_NOSPACE,
		})
		must(e, err)
	}
}

// noSpace checks what works and what does not while NOSPACE is raised.
func (e *env) noSpace(rev int64) {
	e.Helper()
	_, err := e.kv.Put(e.ctx, &pb.PutRequest{Key: []byte("small")})
	e.fails("a small put", err, codes.ResourceExhausted, textNoSpace)
	_, err = e.lease.LeaseGrant(e.ctx, &pb.LeaseGrantRequest{TTL: 100})
	e.fails("a grant", err, codes.ResourceExhausted, textNoSpace)
	for name, req := range map[string]*pb.TxnRequest{
		"a txn with a put":                         {Success: []*pb.RequestOp{opPut("small", "")}},
		"a txn with a put in the other branch":     {Failure: []*pb.RequestOp{opPut("small", "")}, Success: []*pb.RequestOp{opDel("none", "")}},
		"a txn with a put beside a failed compare": {Compare: []*pb.Compare{cmpMod("none", 0, 5)}, Success: []*pb.RequestOp{opPut("small", "")}},
	} {
		_, err = e.kv.Txn(e.ctx, req)
		e.fails(name, err, codes.ResourceExhausted, textNoSpace)
	}
	e.txn(&pb.TxnRequest{Success: []*pb.RequestOp{opGet("k00"), opDel("none", "")}})
	equal(e, "a read", e.get("k00").Count, 1)
	equal(e, "revision while raised", e.rev(), rev)
	status, body, err := e.srv.Get(e.ctx, "/health")
	must(e, err)
	equal(e, "/health", status, http.StatusServiceUnavailable)
	equal(e, "/health", strings.TrimSpace(body), `{"health":"false","reason":"ALARM NOSPACE"}`)
	status, body, err = e.srv.Get(e.ctx, "/health?exclude=NOSPACE")
	must(e, err)
	equal(e, "/health without the alarm", status, http.StatusOK)
	equal(e, "/health without the alarm", strings.TrimSpace(body), `{"health":"true","reason":""}`)
	st, err := e.maint.Status(e.ctx, &pb.StatusRequest{})
	must(e, err)
	raised, err := e.maint.Alarm(e.ctx, &pb.AlarmRequest{})
	must(e, err)
	equal(e, "errors in the status", len(st.Errors), len(raised.Alarms))
	equal(e, "quota in the status", st.DbSizeQuota, 2<<20)
}

func alarms(e *env) {
	alarm := func(action pb.AlarmRequest_AlarmAction, kind pb.AlarmType) []*pb.AlarmMember {
		e.Helper()
		resp, err := e.maint.Alarm(e.ctx, &pb.AlarmRequest{Action: action, MemberID: 0, Alarm: kind})
		must(e, err)
		return resp.Alarms
	}
	equal(e, "none at first", len(alarm(pb.AlarmRequest_GET, pb.AlarmType_NONE)), 0)
	member := e.get("a").Header.MemberId
	resp, err := e.maint.Alarm(e.ctx, &pb.AlarmRequest{Action: pb.AlarmRequest_ACTIVATE, MemberID: member, Alarm: pb.AlarmType_NOSPACE})
	must(e, err)
	equal(e, "raised", len(resp.Alarms), 1)
	equal(e, "its member", resp.Alarms[0].MemberID, member)
	equal(e, "all", len(alarm(pb.AlarmRequest_GET, pb.AlarmType_NONE)), 1)
	equal(e, "of its kind", len(alarm(pb.AlarmRequest_GET, pb.AlarmType_NOSPACE)), 1)
	equal(e, "of another kind", len(alarm(pb.AlarmRequest_GET, pb.AlarmType_CORRUPT)), 0)
	_, err = e.kv.Put(e.ctx, &pb.PutRequest{Key: []byte("a")})
	e.fails("a put", err, codes.ResourceExhausted, textNoSpace)
	e.srv.Restart()
	equal(e, "after a crash", len(alarm(pb.AlarmRequest_GET, pb.AlarmType_NONE)), 1)
	resp, err = e.maint.Alarm(e.ctx, &pb.AlarmRequest{Action: pb.AlarmRequest_DEACTIVATE, MemberID: member, Alarm: pb.AlarmType_NOSPACE})
	must(e, err)
	equal(e, "disarmed", len(resp.Alarms), 1)
	resp, err = e.maint.Alarm(e.ctx, &pb.AlarmRequest{Action: pb.AlarmRequest_DEACTIVATE, MemberID: member, Alarm: pb.AlarmType_NOSPACE})
	must(e, err)
	equal(e, "disarmed twice", len(resp.Alarms), 0)
	equal(e, "none at last", len(alarm(pb.AlarmRequest_GET, pb.AlarmType_NONE)), 0)
	e.put("a", "1")
}

func members(e *env) {
	_, err := e.maint.MoveLeader(e.ctx, &pb.MoveLeaderRequest{TargetID: 12345})
	e.fails("move the leader to nobody", err, codes.FailedPrecondition, e.textNoTransferee())
	_, err = e.cluster.MemberAdd(e.ctx, &pb.MemberAddRequest{PeerURLs: []string{"not a url"}})
	e.fails("add a bad URL", err, codes.InvalidArgument, "etcdserver: given member URLs are invalid")
	_, err = e.cluster.MemberRemove(e.ctx, &pb.MemberRemoveRequest{ID: 12345})
	e.fails("remove nobody", err, codes.NotFound, "etcdserver: member not found")
	_, err = e.cluster.MemberUpdate(e.ctx, &pb.MemberUpdateRequest{ID: 12345, PeerURLs: []string{"http://127.0.0.1:1"}})
	e.fails("update nobody", err, codes.NotFound, "etcdserver: member not found")
	_, err = e.cluster.MemberUpdate(e.ctx, &pb.MemberUpdateRequest{ID: 12345, PeerURLs: []string{"not a url"}})
	e.fails("update nobody with a bad URL", err, codes.NotFound, "etcdserver: member not found")
	_, err = e.cluster.MemberPromote(e.ctx, &pb.MemberPromoteRequest{ID: 12345})
	e.fails("promote nobody", err, codes.NotFound, "etcdserver: member not found")
	equal(e, "members", len(e.members()), len(e.srv.Nodes))
}

func (e *env) members() []*pb.Member {
	e.Helper()
	list, err := e.cluster.MemberList(e.ctx, &pb.MemberListRequest{})
	must(e, err)
	return list.Members
}

// textNoTransferee refuses to move the leadership to nobody, which only the
// leader answers.
func (e *env) textNoTransferee() string {
	e.Helper()
	st, err := e.maint.Status(e.ctx, &pb.StatusRequest{})
	must(e, err)
	if st.Leader != st.Header.MemberId {
		return "etcdserver: not leader"
	}
	return "etcdserver: bad leader transferee"
}

func healthService(e *env) {
	resp, err := healthpb.NewHealthClient(e.conn).Check(e.ctx, &healthpb.HealthCheckRequest{})
	must(e, err)
	equal(e, "health of the server", resp.Status, healthpb.HealthCheckResponse_SERVING)
	_, err = healthpb.NewHealthClient(e.conn).Check(e.ctx, &healthpb.HealthCheckRequest{Service: "none.Such"})
	e.fails("an unknown service", err, codes.NotFound, "unknown service")
}

// tooManyPings pings on a connection without a stream, which clients may not.
func tooManyPings(e *env) {
	conn, err := net.Dial("unix", e.srv.Socket)
	must(e, err)
	defer func() { _ = conn.Close() }()
	must(e, conn.SetDeadline(time.Now().Add(time.Minute)))
	_, err = conn.Write([]byte(http2.ClientPreface))
	must(e, err)
	framer := http2.NewFramer(conn, conn)
	must(e, framer.WriteSettings())
	// A server that has had enough may close before the last of them.
	for i := range 10 {
		if err := framer.WritePing(false, [8]byte{byte(i)}); err != nil {
			break
		}
	}
	for {
		frame, err := framer.ReadFrame()
		must(e, err)
		if away, ok := frame.(*http2.GoAwayFrame); ok {
			equal(e, "code", away.ErrCode, http2.ErrCodeEnhanceYourCalm)
			equal(e, "reason", string(away.DebugData()), "too_many_pings")
			return
		}
	}
}

func httpEndpoints(e *env) {
	check := func(method, path string, wantStatus int, wantBody string) {
		e.Helper()
		status, body, err := e.srv.Do(e.ctx, method, path, "")
		must(e, err)
		equal(e, method+" "+path+": status", status, wantStatus)
		equal(e, method+" "+path, strings.TrimSpace(body), wantBody)
	}
	const healthy = `{"health":"true","reason":""}`
	check(http.MethodGet, "/health", 200, healthy)
	check(http.MethodGet, "/health?serializable=true", 200, healthy)
	check(http.MethodGet, "/health?exclude=NOSPACE", 200, healthy)
	check(http.MethodPost, "/health", 405, "Method Not Allowed")
	check(http.MethodGet, "/livez", 200, "ok")
	check(http.MethodGet, "/readyz", 200, "ok")
	check(http.MethodGet, "/livez/serializable_read", 200, "ok")
	check(http.MethodGet, "/readyz/serializable_read", 200, "ok")
	check(http.MethodGet, "/readyz/linearizable_read", 200, "ok")
	check(http.MethodGet, "/readyz/data_corruption", 200, "ok")
	check(http.MethodPost, "/livez", 405, "Method Not Allowed")
	check(http.MethodPost, "/readyz", 405, "Method Not Allowed")
	check(http.MethodGet, "/livez?verbose", 200, "[+]serializable_read ok\nok")
	check(http.MethodGet, "/livez?exclude=serializable_read", 200, "ok")
	check(http.MethodGet, "/livez?exclude=none", 200, "ok")
	check(http.MethodGet, "/livez?verbose&exclude=serializable_read", 200, "ok")
	check(http.MethodGet, "/readyz?verbose&exclude=linearizable_read&exclude=data_corruption&exclude=non_learner", 200, "[+]serializable_read ok\nok")
	check(http.MethodGet, "/readyz/linearizable_read?verbose", 200, "[+]linearizable_read ok\nok")
	check(http.MethodGet, "/livez/linearizable_read", 404, "404 page not found")
	check(http.MethodGet, "/livez/", 404, "404 page not found")
	check(http.MethodGet, "/health/", 404, "404 page not found")
	check(http.MethodGet, "/health?exclude=NONE&serializable=false", 200, healthy)
	check(http.MethodHead, "/health", 405, "")
	check(http.MethodDelete, "/readyz/serializable_read", 405, "Method Not Allowed")
	check(http.MethodGet, "/none", 404, "404 page not found")
	check(http.MethodPost, "/version", 405, "Method Not Allowed")

	_, body, err := e.srv.Get(e.ctx, "/version")
	must(e, err)
	var version map[string]string
	must(e, json.Unmarshal([]byte(body), &version))
	equal(e, "/version", version["etcdserver"], "3.7.3")
	equal(e, "/version", version["etcdcluster"], "3.7.0")
	equal(e, "/version", version["storage"], "3.7.0")
	_, body, err = e.srv.Get(e.ctx, "/readyz?verbose")
	must(e, err)
	for _, line := range []string{"[+]serializable_read ok", "[+]linearizable_read ok", "[+]data_corruption ok"} {
		if !strings.Contains(body, line+"\n") {
			e.Errorf("/readyz?verbose lacks %q: %s", line, body)
		}
	}
	status, body, err := e.srv.Get(e.ctx, "/metrics")
	must(e, err)
	equal(e, "/metrics", status, http.StatusOK)
	if !strings.Contains(body, "# TYPE ") {
		e.Errorf("/metrics holds no metrics: %.200s", body)
	}
}
