// Package gateway sends the same HTTP requests, good and odd, to the JSON API
// of a real etcd and of keelson and compares the answers; and it runs etcd's
// client/v3/concurrency, which shares its keys with the services for locks and
// elections, on both.
//
// What is not compared: the headers for browsers of other origins, which
// keelson does not send, and blanks in JSON, which protobuf puts in at random.
package gateway

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/keelson-io/keelson/test/harness"
)

// request is one HTTP request; the zero values are what is usual.
type request struct {
	path, body string
	method     string   // POST
	header     []string // pairs
	lines      int      // of an answer that does not end; 0: all of it
	status     int      // 200; what etcd answers, lest both be wrong alike
}

// requests run in order on one server.
var requests = []request{
	// Bodies.
	{path: "/v3/kv/put", body: `{"key":"YQ==","value":"MQ=="}`},
	{path: "/v3/kv/put", body: `{"value":"MQ==","key":"YQ==","prevKv":true,"prev_kv":true}`, status: 400},
	{path: "/v3/kv/put", body: `{"key":"YQ==","key":"Yg=="}`, status: 400},
	{path: "/v3/kv/put", body: `{"key":"YQ==","valeu":{"a":[1,null,"x"]}}`},
	{path: "/v3/kv/range", body: ``, status: 400},
	{path: "/v3/kv/range", body: `null`, status: 400},
	{path: "/v3/kv/range", body: `[]`, status: 400},
	{path: "/v3/kv/range", body: `"key"`, status: 400},
	{path: "/v3/kv/range", body: `{"key":"YQ=="`, status: 400},
	{path: "/v3/kv/range", body: `{"key":"YQ=="}}`},
	{path: "/v3/kv/range", body: `{"key":"YQ=="} trailing`},
	{path: "/v3/kv/range", body: `{"key":"YQ=="}{"key":"Yg=="}`},
	{path: "/v3/kv/range", body: " \n\t{\"key\" : \"YQ==\"}"},
	{path: "/v3/kv/range", body: `{'key':'YQ=='}`, status: 400},
	{path: "/v3/kv/range", body: "\xff\xfe", status: 400},
	{path: "/v3/kv/range", body: strings.Repeat("[", 20000), status: 400},
	// Bytes.
	{path: "/v3/kv/range", body: `{"key":"YQ"}`},
	{path: "/v3/kv/range", body: `{"key":"_-8="}`},
	{path: "/v3/kv/range", body: `{"key":"+/8="}`},
	{path: "/v3/kv/range", body: `{"key":"a b"}`, status: 400},
	{path: "/v3/kv/range", body: `{"key":""}`, status: 400},
	{path: "/v3/kv/range", body: `{"key":null}`, status: 400},
	{path: "/v3/kv/range", body: `{"key":97}`, status: 400},
	// Numbers, switches, names.
	{path: "/v3/kv/range", body: `{"key":"YQ==","limit":1}`},
	{path: "/v3/kv/range", body: `{"key":"YQ==","limit":"1"}`},
	{path: "/v3/kv/range", body: `{"key":"YQ==","limit":1.0}`},
	{path: "/v3/kv/range", body: `{"key":"YQ==","limit":"1e0"}`},
	{path: "/v3/kv/range", body: `{"key":"YQ==","limit":1.5}`, status: 400},
	{path: "/v3/kv/range", body: `{"key":"YQ==","limit":" 1"}`, status: 400},
	{path: "/v3/kv/range", body: `{"key":"YQ==","limit":9223372036854775808}`, status: 400},
	{path: "/v3/kv/range", body: `{"key":"YQ==","limit":"-1"}`},
	{path: "/v3/kv/range", body: `{"key":"YQ==","revision":"9223372036854775807"}`, status: 400},
	{path: "/v3/kv/range", body: `{"key":"YQ==","keys_only":true}`},
	{path: "/v3/kv/range", body: `{"key":"YQ==","keysOnly":true,"countOnly":false}`},
	{path: "/v3/kv/range", body: `{"key":"YQ==","count_only":true}`},
	{path: "/v3/kv/range", body: `{"key":"YQ==","keys_only":"true"}`, status: 400},
	{path: "/v3/kv/range", body: `{"key":"YQ==","sort_order":"DESCEND","sort_target":"VALUE"}`},
	{path: "/v3/kv/range", body: `{"key":"YQ==","sort_order":2,"sort_target":4}`},
	{path: "/v3/kv/range", body: `{"key":"YQ==","sort_order":9}`, status: 400},
	{path: "/v3/kv/range", body: `{"key":"YQ==","sort_order":"SIDEWAYS"}`},
	// Transactions.
	{path: "/v3/kv/txn", body: `{}`},
	{path: "/v3/kv/txn", body: `{"success":[{}]}`, status: 400},
	{path: "/v3/kv/txn", body: `{"success":[{"request_put":{"key":"YQ=="},"request_range":{"key":"YQ=="}}]}`, status: 400},
	{path: "/v3/kv/txn", body: `{"success":[{"requestPut":{"key":"Yg=="}},{"request_delete_range":{"key":"Yw=="}},{"request_txn":{"failure":[{"request_range":{"key":"Yg=="}}]}}]}`},
	{path: "/v3/kv/txn", body: `{"compare":[{"target":"MOD","key":"YQ==","mod_revision":"9","result":"LESS"}],"failure":[{"request_range":{"key":"YQ=="}}]}`},
	{path: "/v3/kv/txn", body: `{"compare":[{"target":"VALUE","key":"YQ==","value":"MQ=="},{"target":0,"key":"YQ==","version":2,"result":3}]}`},
	{path: "/v3/kv/txn", body: `{"success":[{"request_put":{"key":"YQ=="}},{"request_put":{"key":"YQ=="}}]}`, status: 400},
	{path: "/v3/kv/deleterange", body: `{"key":"AA==","range_end":"AA==","prev_kv":true}`},
	{path: "/v3/kv/compaction", body: `{"revision":"3","physical":true}`},
	{path: "/v3/kv/compaction", body: `{}`, status: 400},
	{path: "/v3/kv/range", body: `{"key":"YQ==","revision":"2"}`, status: 400},
	// Sizes.
	{path: "/v3/kv/put", body: `{"key":"YQ==","value":"` + strings.Repeat("AAAA", 400<<10) + `"}`},
	{path: "/v3/kv/put", body: `{"key":"YQ==","value":"` + strings.Repeat("AAAA", 600<<10) + `"}`, status: 400},
	{path: "/v3/kv/put", body: `{"key":"YQ==","value":"` + strings.Repeat("AAAA", 800<<10) + `"}`, status: 429},
	{path: "/v3/kv/range", body: `{"key":"YQ=="}`},
	{path: "/v3/kv/put", body: `{"key":"YQ==","nonsense":"` + strings.Repeat("AAAA", 800<<10) + `"}`},
	// Paths and methods.
	{path: "/v3beta/kv/range", body: `{"key":"YQ=="}`},
	{path: "/v3alpha/kv/range", body: `{"key":"YQ=="}`, status: 404},
	{path: "/v3/kv/range/", body: `{"key":"YQ=="}`, status: 404},
	{path: "/v3/kv//range", body: `{"key":"YQ=="}`, status: 307},
	{path: "/v3/kv/%72ange", body: `{"key":"YQ=="}`},
	{path: "/v3/KV/range", body: `{"key":"YQ=="}`, status: 404},
	{path: "/v3/kv/range:x", body: `{"key":"YQ=="}`, status: 404},
	{path: "/v3/kv/range?key=Yg==&limit=7", body: `{"key":"YQ=="}`},
	{path: "/v3/kv/range?key=Yg==", body: ``, status: 400},
	{path: "/v3", body: `{}`, status: 307},
	{path: "/v3/", body: `{}`, status: 404},
	{path: "/v3/kv/rangestream", body: `{"key":"YQ=="}`, status: 404},
	{path: "/v3/kv/range", method: http.MethodGet, status: 501},
	{path: "/v3/kv/range", method: http.MethodPut, body: `{"key":"YQ=="}`, status: 501},
	{path: "/v3/kv/range", method: http.MethodDelete, status: 501},
	{path: "/v3/kv/range", method: http.MethodHead, status: 501},
	{path: "/v3/watch", method: http.MethodGet, status: 501},
	{path: "/v3/kv/range", body: `{"key":"YQ=="}`, header: []string{"X-HTTP-Method-Override", "GET"}},
	{path: "/v3/kv/range", body: `key=YQ==`, header: []string{"Content-Type", "application/x-www-form-urlencoded"}, status: 400},
	{path: "/v3/kv/range", body: `{"key":"YQ=="}`, header: []string{"Content-Type", "text/plain", "Accept", "application/xml"}},
	{path: "/v3/kv/range", body: `{"key":"YQ=="}`, header: []string{"Content-Type", "nonsense; =", "Accept", "text/event-stream"}},
	{path: "/v3/kv/range", body: `{"key":"YQ=="}`, header: []string{"Grpc-Timeout", "10S"}},
	{path: "/v3/kv/range", body: `{"key":"YQ=="}`, header: []string{"Grpc-Timeout", "soon"}, status: 400},
	{path: "/v3/kv/range", body: `{"key":"YQ=="}`, header: []string{"Grpc-Metadata-Hasleader", "true", "Authorization", "token"}},
	{path: "/v3/kv/range", body: `{"key":"YQ=="}`, header: []string{"TE", "trailers"}},
	// Leases.
	{path: "/v3/lease/grant", body: `{"TTL":"1","ID":"5"}`},
	{path: "/v3/lease/grant", body: `{"ttl":"100","id":"6"}`},
	{path: "/v3/lease/grant", body: `{"TTL":"9000000001"}`, status: 400},
	{path: "/v3/lease/grant", body: `{"TTL":"100","ID":"7"}`},
	{path: "/v3/lease/keepalive", body: `{"ID":"7"}{"ID":"404"} {"ID":"7"}`},
	{path: "/v3/lease/keepalive", body: `{"ID":"7"}{"ID":`},
	{path: "/v3/lease/keepalive", body: ``},
	{path: "/v3/lease/timetolive", body: `{"ID":"7","keys":true}`},
	{path: "/v3/lease/timetolive", method: http.MethodGet, status: 501},
	{path: "/v3/lease/revoke", body: `{}`, status: 404},
	// Watches.
	{path: "/v3/watch", body: `{"create_request":{"key":"YQ==","start_revision":"-1"}}`, lines: 1},
	{path: "/v3/watch", body: `{"create_request":{"key":"YQ==","start_revision":"2"}}`, lines: 2},
	{path: "/v3/watch", body: `{"create_request":{"key":"AA==","range_end":"AA==","start_revision":"5","filters":["NOPUT"],"prev_kv":true}}`, lines: 2},
	{path: "/v3/watch", body: `{"create_request":{"key":"Yg==","range_end":"YQ=="}}{"create_request":{"watch_id":"5"}}{"create_request":{"watchId":5}}`, lines: 3},
	{path: "/v3/watch", body: `{"create_request":{}}{"cancel_request":{"watch_id":"0"}}`, lines: 2},
	// Locks and elections.
	{path: "/v3/lock/lock", body: `{"name":"bA==","lease":"7"}`},
	{path: "/v3/lock/lock", body: `{"name":"bA==","lease":"7"}`},
	{path: "/v3/lock/lock", body: `{"name":"bA==","lease":"-1"}`, status: 500},
	{path: "/v3/lock/unlock", body: `{"key":"bC83"}`},
	{path: "/v3/lock/unlock", body: `{}`, status: 500},
	{path: "/v3/lock/lock", body: `{"name":"bA==","lease":"x"}`, status: 400},
	{path: "/v3/election/campaign", body: `{"name":"ZQ==","lease":"7","value":"MQ=="}`},
	{path: "/v3/election/campaign", body: `{"name":"ZQ==","lease":"7","value":"Mg=="}`},
	{path: "/v3/election/campaign", body: `{"name":"ZQ==","lease":"404"}`, status: 500},
	{path: "/v3/election/leader", body: `{"name":"ZQ=="}`},
	{path: "/v3/election/observe", body: `{"name":"ZQ=="}`, lines: 1},
	{path: "/v3/election/proclaim", body: `{"leader":{"name":"ZQ==","key":"ZS83","rev":"1","lease":"7"}}`, status: 500},
	{path: "/v3/election/proclaim", body: `{"leader":{}}`, status: 500},
	{path: "/v3/election/proclaim", body: `{"leader":{"key":"bmV3","lease":"7"},"value":"MQ=="}`},
	{path: "/v3/election/proclaim", body: `{"leader":{"key":"bmV3Mg==","lease":"404"}}`, status: 500},
	{path: "/v3/election/resign", body: `{"leader":{"key":"ZS83","rev":"1","lease":"7"}}`},
	{path: "/v3/election/resign", body: `{"leader":{}}`, status: 500},
	{path: "/v3/election/resign", body: `{"leader":null}`, status: 500},
	{path: "/v3/election/leader", body: `{}`, status: 500},
	// The rest.
	{path: "/v3/maintenance/status", body: `{}`},
	{path: "/v3/maintenance/hashkv", body: `{}`},
	{path: "/v3/maintenance/alarm", body: `{"action":"ACTIVATE","memberID":"5","alarm":"NOSPACE"}`},
	{path: "/v3/maintenance/alarm", body: `{"action":"GET"}`},
	{path: "/v3/kv/put", body: `{"key":"YQ=="}`, status: 429},
	{path: "/v3/lock/lock", body: `{"name":"bA==","lease":"7"}`, status: 500},
	{path: "/v3/maintenance/alarm", body: `{"action":"DEACTIVATE","memberID":"5","alarm":"NOSPACE"}`},
	{path: "/v3/maintenance/defragment", body: `{}`},
	{path: "/v3/cluster/member/list", body: `{"linearizable":true}`},
	{path: "/v3/cluster/member/add", body: `{"peerURLs":["nowhere"]}`, status: 400},
	{path: "/v3/cluster/member/update", body: `{"ID":"5","peerURLs":["http://127.0.0.1:1"]}`, status: 404},
	{path: "/v3/cluster/member/promote", body: `{"ID":"5"}`, status: 404},
	{path: "/v3/auth/status", body: `{}`},
	{path: "/v3/auth/authenticate", body: `{"name":"root","password":"x"}`, status: 400},
	{path: "/v3/auth/user/list", body: `{}`},
	{path: "/v3/auth/role/get", body: `{"role":"x"}`, status: 400},
}

// own are the fields whose values belong to a server.
var own = map[string]bool{
	"cluster_id": true, "member_id": true, "raft_term": true, "raftTerm": true, "raftIndex": true, "raftAppliedIndex": true,
	"leader": true, "dbSize": true, "dbSizeInUse": true, "hash": true, "ID": true, "clientURLs": true,
}

// plain replaces what belongs to a server, and long values.
func plain(name string, v any) any {
	switch v := v.(type) {
	case map[string]any:
		delete(v, "peerURLs") // keelson has no peers
		for name := range v {
			v[name] = plain(name, v[name])
		}
		return v
	case []any:
		if own[name] {
			return name
		}
		for i := range v {
			v[i] = plain("", v[i])
		}
		return v
	case string:
		// A lease is the client's to choose; other numbers are not as short.
		if own[name] && len(v) > 3 || strings.HasPrefix(name, "db") || strings.HasPrefix(name, "raft") {
			return name
		}
		if len(v) > 1000 {
			return fmt.Sprintf("%s… %d", v[:10], len(v))
		}
	case float64:
		if own[name] {
			return name
		}
	}
	return v
}

// answer renders what is compared.
func answer(t *testing.T, srv *harness.Server, r request) (status int, text string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	transport := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", srv.Socket)
	}}
	defer transport.CloseIdleConnections()
	method := r.method
	if method == "" {
		method = http.MethodPost
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://localhost"+r.path, strings.NewReader(r.body))
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(r.header); i += 2 {
		req.Header.Set(r.header[i], r.header[i+1])
	}
	resp, err := transport.RoundTrip(req) // no redirects
	if err != nil {
		t.Fatalf("%s: %v", srv.Backend, err)
	}
	defer func() { _ = resp.Body.Close() }()
	var out strings.Builder
	for _, name := range []string{"Content-Type", "Location", "Allow", "Grpc-Metadata-Content-Type", "X-Content-Type-Options", "Trailer", "Www-Authenticate"} {
		if v := resp.Header.Values(name); len(v) > 0 {
			fmt.Fprintf(&out, "%s: %q\n", name, v)
		}
	}
	body := bufio.NewReader(resp.Body)
	for n := 0; r.lines == 0 || n < r.lines; n++ {
		line, err := body.ReadBytes('\n')
		line = bytes.ReplaceAll(line, []byte("\u00a0"), []byte(" "))
		var parsed any
		if json.Unmarshal(line, &parsed) == nil {
			line, _ = json.Marshal(plain("", parsed))
		}
		fmt.Fprintf(&out, "%s\n", bytes.TrimSpace(line))
		if err == io.EOF && r.lines == 0 {
			break
		}
		if err != nil {
			t.Fatalf("%s: after %s: %v", srv.Backend, out.String(), err)
		}
	}
	return resp.StatusCode, out.String()
}

func TestMain(m *testing.M) { harness.Main(m) }

func TestSameAnswers(t *testing.T) {
	var servers []*harness.Server
	for _, backend := range harness.Backends(t) {
		servers = append(servers, harness.StartServer(t, backend))
	}
	for i, r := range requests {
		t.Run(fmt.Sprintf("%d %s", i, r.path), func(t *testing.T) {
			if r.status == 0 {
				r.status = http.StatusOK
			}
			first := ""
			for n, srv := range servers {
				status, text := answer(t, srv, r)
				if status != r.status {
					t.Errorf("%s: status %d, want %d\n%s", srv.Backend, status, r.status, text)
				}
				if n == 0 {
					first = text
				} else if text != first {
					t.Errorf("%.200s\n%s: %s\n%s: %s", r.body, servers[0].Backend, first, srv.Backend, text)
				}
			}
		})
	}
}

// --enable-grpc-gateway=false takes the API away, as in etcd.
func TestSwitchedOff(t *testing.T) {
	for _, backend := range harness.Backends(t) {
		srv := harness.StartServer(t, backend, "--enable-grpc-gateway=false")
		status, body, err := srv.Do(t.Context(), http.MethodPost, "/v3/kv/range", `{"key":"YQ=="}`)
		if err != nil || status != http.StatusNotFound || body != "404 page not found\n" {
			t.Errorf("%s: %d %q %v", backend, status, body, err)
		}
	}
}
