package contract

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"regexp"
	"strings"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
)

var gateway = []statement{
	{name: "41_http2_prior_knowledge", run: priorKnowledge},
	{name: "42_json_gateway", run: jsonGateway},
	{name: "42_json_watch", run: jsonWatch},
	{name: "43_lock", run: lockService},
	{name: "43_election", run: electionService},
}

// post sends a JSON request and renders status and body, the body parsed and
// written again, without what belongs to the server.
func (e *env) post(path, request string) string {
	e.Helper()
	status, body, err := e.srv.Do(e.ctx, http.MethodPost, path, request)
	must(e, err)
	var parsed map[string]any
	if err := json.Unmarshal([]byte(body), &parsed); err != nil {
		return fmt.Sprint(status, " ", strings.TrimSpace(body))
	}
	return fmt.Sprint(status, " ", render(e, parsed))
}

func render(e *env, parsed map[string]any) string {
	e.Helper()
	forget(parsed)
	out, err := json.Marshal(parsed) // sorts the fields
	must(e, err)
	return fullHeader.ReplaceAllString(string(out), `"header":$1`)
}

// fullHeader is a header with everything in it, to be shortened to its revision.
var fullHeader = regexp.MustCompile(`"header":\{"cluster_id":"N","member_id":"N","raft_term":"N","revision":"([0-9]+)"\}`)

// forget replaces identities, wherever they are, by whether they are there.
func forget(v any) {
	switch v := v.(type) {
	case map[string]any:
		for name, field := range v {
			switch name {
			case "cluster_id", "member_id", "raft_term", "hash":
				v[name] = "N"
			default:
				forget(field)
			}
		}
	case []any:
		for _, item := range v {
			forget(item)
		}
	}
}

func jsonGateway(e *env) {
	for _, c := range []struct{ path, request, want string }{
		{"/v3/kv/put", `{"key":"YQ==","value":"MQ=="}`, `200 {"header":2}`},
		{"/v3/kv/put", `{"key":"YQ==","value":"Mg==","prev_kv":true}`, `200 {"header":3,"prev_kv":{"create_revision":"2","key":"YQ==","mod_revision":"2","value":"MQ==","version":"1"}}`},
		{"/v3/kv/put", `{"key":"YQ==","value":"Mg==","prevKv":true,"no_such_field":1}`, `200 {"header":4,"prev_kv":{"create_revision":"2","key":"YQ==","mod_revision":"3","value":"Mg==","version":"2"}}`},
		{"/v3/kv/put", `{"value":"Mg=="}`, `400 {"code":3,"message":"etcdserver: key is not provided"}`},
		{"/v3/kv/put", `{"key":`, `400 {"code":3,"message":"unexpected EOF"}`},
		{"/v3/kv/put", `{"key":"YQ==","lease":"404"}`, `404 {"code":5,"message":"etcdserver: requested lease not found"}`},
		{"/v3/kv/range", `{"key":"YQ=="}`, `200 {"count":"1","header":4,"kvs":[{"create_revision":"2","key":"YQ==","mod_revision":"4","value":"Mg==","version":"3"}]}`},
		{"/v3/kv/range", `{"key":"YQ==","range_end":"eg==","sort_order":"DESCEND","limit":"1"}`, `200 {"count":"1","header":4,"kvs":[{"create_revision":"2","key":"YQ==","mod_revision":"4","value":"Mg==","version":"3"}]}`},
		{"/v3/kv/range", `{"key":"YQ==","revision":99}`, `400 {"code":11,"message":"etcdserver: mvcc: required revision is a future revision"}`},
		{"/v3/kv/range", `{"key":"bm9uZQ=="}`, `200 {"header":4}`},
		{"/v3/kv/txn", `{"compare":[{"key":"YQ==","target":"VERSION","version":"3"}],"success":[{"request_put":{"key":"Yg==","value":"MQ=="}},{"request_range":{"key":"Yg=="}}]}`, `200 {"header":5,"responses":[{"response_put":{"header":{"revision":"5"}}},{"response_range":{"count":"1","header":{"revision":"5"},"kvs":[{"create_revision":"5","key":"Yg==","mod_revision":"5","value":"MQ==","version":"1"}]}}],"succeeded":true}`},
		{"/v3/kv/deleterange", `{"key":"Yg==","prev_kv":true}`, `200 {"deleted":"1","header":6,"prev_kvs":[{"create_revision":"5","key":"Yg==","mod_revision":"5","value":"MQ==","version":"1"}]}`},
		{"/v3/kv/deleterange", `{"key":"Yg=="}`, `200 {"header":6}`},
		{"/v3/kv/compaction", `{"revision":"3"}`, `200 {"header":6}`},
		{"/v3/kv/compaction", `{"revision":"3"}`, `400 {"code":11,"message":"etcdserver: mvcc: required revision has been compacted"}`},
		{"/v3/lease/grant", `{"ID":"7","TTL":"100"}`, `200 {"ID":"7","TTL":"100","header":6}`},
		{"/v3/lease/grant", `{"ID":"7","TTL":"100"}`, `400 {"code":9,"message":"etcdserver: lease already exists"}`},
		{"/v3/lease/timetolive", `{"ID":"404"}`, `200 {"ID":"404","TTL":"-1","header":6}`},
		{"/v3/kv/lease/timetolive", `{"ID":"404"}`, `200 {"ID":"404","TTL":"-1","header":6}`},
		{"/v3/lease/keepalive", `{"ID":"7"}`, `200 {"result":{"ID":"7","TTL":"100","header":6}}`},
		{"/v3/lease/leases", `{}`, `200 {"header":6,"leases":[{"ID":"7"}]}`},
		{"/v3/kv/lease/leases", `{}`, `200 {"header":6,"leases":[{"ID":"7"}]}`},
		{"/v3/lease/revoke", `{"ID":"7"}`, `200 {"header":6}`},
		{"/v3/kv/lease/revoke", `{"ID":"7"}`, `404 {"code":5,"message":"etcdserver: requested lease not found"}`},
		{"/v3/maintenance/alarm", `{}`, `200 {"header":6}`},
		{"/v3/maintenance/hash", `{}`, `200 {"hash":"N","header":6}`},
		{"/v3/maintenance/hashkv", `{"revision":"99"}`, `400 {"code":11,"message":"etcdserver: mvcc: required revision is a future revision"}`},
		{"/v3/maintenance/transfer-leadership", `{"targetID":"5"}`, `400 {"code":9,"message":"` + e.textNoTransferee() + `"}`},
		{"/v3/cluster/member/remove", `{"ID":"5"}`, `404 {"code":5,"message":"etcdserver: member not found"}`},
		{"/v3/no/such", `{}`, `404 {"code":5,"message":"Not Found"}`},
	} {
		equal(e, c.path+" "+c.request, e.post(c.path, c.request), c.want)
	}
	status, _, err := e.srv.Do(e.ctx, http.MethodGet, "/v3/kv/range", "")
	must(e, err)
	equal(e, "GET", status, http.StatusNotImplemented)
	for _, path := range []string{"/v3/maintenance/status", "/v3/cluster/member/list"} {
		if got := e.post(path, "{}"); !strings.HasPrefix(got, "200 {") || !strings.Contains(got, `"header":`) {
			e.Errorf("%s: %s", path, got)
		}
	}
}

// jsonStream posts a request whose answer is a stream, one JSON value a line.
func (e *env) jsonStream(path, request string) func() string {
	e.Helper()
	var dialer net.Dialer
	transport := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return dialer.DialContext(ctx, "unix", e.srv.Socket)
	}}
	e.Cleanup(transport.CloseIdleConnections)
	req, err := http.NewRequestWithContext(e.ctx, http.MethodPost, "http://localhost"+path, io.NopCloser(strings.NewReader(request)))
	must(e, err)
	resp, err := (&http.Client{Transport: transport}).Do(req)
	must(e, err)
	e.Cleanup(func() { _ = resp.Body.Close() })
	lines := bufio.NewScanner(resp.Body)
	return func() string {
		e.Helper()
		if !lines.Scan() {
			e.Fatalf("%s: the stream ended: %v", path, lines.Err())
		}
		var parsed map[string]any
		must(e, json.Unmarshal(lines.Bytes(), &parsed))
		return render(e, parsed)
	}
}

func jsonWatch(e *env) {
	e.put("a", "1")
	next := e.jsonStream("/v3/watch", `{"create_request":{"key":"YQ==","start_revision":"2"}}`)
	equal(e, "created", next(), `{"result":{"created":true,"header":2}}`)
	equal(e, "past event", next(), `{"result":{"events":[{"kv":{"create_revision":"2","key":"YQ==","mod_revision":"2","value":"MQ==","version":"1"}}],"header":2}}`)
	e.put("a", "2")
	equal(e, "live event", next(), `{"result":{"events":[{"kv":{"create_revision":"2","key":"YQ==","mod_revision":"3","value":"Mg==","version":"2"}}],"header":3}}`)
	e.del("a", "")
	equal(e, "delete", next(), `{"result":{"events":[{"kv":{"key":"YQ==","mod_revision":"4"},"type":"DELETE"}],"header":4}}`)
}

func lockService(e *env) {
	e.grant(7, 100)
	e.grant(8, 100)
	lock := func(lease string) string {
		return e.post("/v3/lock/lock", `{"name":"bG9jaw==","lease":"`+lease+`"}`)
	}
	equal(e, "lock", lock("7"), `200 {"header":2,"key":"bG9jay83"}`)
	equal(e, "the key of a lock", keys(e.rng(&pb.RangeRequest{Key: []byte{0}, RangeEnd: []byte{0}}).Kvs), "lock/7")
	// Another waits, its place taken, until the first is unlocked.
	w := e.watch()
	w.create(all())
	second := make(chan string, 1)
	go func() { second <- lock("8") }()
	equal(e, "the key of one that waits", string(w.nextEvent().Kv.Key), "lock/8")
	select {
	case got := <-second:
		e.Errorf("a lock was given twice: %s", got)
	default:
	}
	unlock := func() string { return e.post("/v3/lock/unlock", `{"key":"bG9jay83"}`) }
	equal(e, "unlock", unlock(), `200 {"header":4}`)
	equal(e, "the second", <-second, `200 {"header":4,"key":"bG9jay84"}`)
	equal(e, "unlock again", unlock(), `200 {"header":4}`)
	equal(e, "no such lease", lock("404"), `500 {"code":2,"message":"etcdserver: requested lease not found"}`)
	equal(e, "no name", e.post("/v3/lock/lock", `{"lease":"7"}`), `200 {"header":5,"key":"Lzc="}`)
}

func electionService(e *env) {
	e.grant(7, 100)
	const leader = `"leader":{"name":"ZQ==","key":"ZS83","rev":"2","lease":"7"}`
	const noLeader, mustLead = `500 {"code":2,"message":"election: no leader"}`, `500 {"code":2,"message":"\"leader\" field must be provided"}`
	call := func(what, method, request, want string) {
		e.Helper()
		equal(e, what, e.post("/v3/election/"+method, request), want)
	}
	const name = `{"name":"ZQ=="}`
	call("no leader yet", "leader", name, noLeader)
	call("campaign", "campaign", `{"name":"ZQ==","lease":"7","value":"djE="}`,
		`200 {"header":2,"leader":{"key":"ZS83","lease":"7","name":"ZQ==","rev":"2"}}`)
	const first = `"kv":{"create_revision":"2","key":"ZS83","lease":"7","mod_revision":"2","value":"djE=","version":"1"}`
	call("leader", "leader", name, `200 {"header":2,`+first+`}`)
	next := e.jsonStream("/v3/election/observe", name)
	equal(e, "observed", next(), `{"result":{"header":2,`+first+`}}`)
	call("proclaim for nobody", "proclaim", `{"value":"djI="}`, mustLead)
	call("proclaim", "proclaim", `{`+leader+`,"value":"djI="}`, `200 {"header":3}`)
	equal(e, "observed", next(),
		`{"result":{"header":3,"kv":{"create_revision":"2","key":"ZS83","lease":"7","mod_revision":"3","value":"djI=","version":"2"}}}`)
	call("resign for nobody", "resign", `{}`, mustLead)
	call("resign", "resign", `{`+leader+`}`, `200 {"header":4}`)
	call("proclaim without leading", "proclaim", `{`+leader+`,"value":"djM="}`, `500 {"code":2,"message":"election: not leader"}`)
	call("no leader any more", "leader", name, noLeader)
}
