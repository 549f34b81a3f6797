package server

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
)

// gateway is a gateway on HTTP, before a member.
type gateway struct {
	*claimants
	*Gateway
	http *httptest.Server
}

func newGateway(t *testing.T, opt memberOptions) *gateway {
	t.Helper()
	g := &gateway{claimants: newClaimants(t, opt)}
	g.Gateway = g.server.NewGateway()
	g.http = httptest.NewServer(g.Gateway)
	served := serve(g.grpc, g.Gateway)
	t.Cleanup(func() {
		g.http.CloseClientConnections()
		g.http.Close()
		if err := g.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
		<-served
	})
	return g
}

// serve serves the gateway's connection until that is closed.
func serve(server *grpc.Server, g *Gateway) <-chan struct{} {
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = server.Serve(g.Listener()) // an error, since the server goes on
	}()
	return ended
}

// answer is an HTTP response; its body is read until the test ends.
type answer struct {
	code   int
	header http.Header
	body   io.Reader
}

// post sends a request; header lines are pairs.
func (g *gateway) post(t *testing.T, path, body string, header ...string) answer {
	t.Helper()
	req, err := http.NewRequestWithContext(g.ctx, http.MethodPost, g.http.URL+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = resp.Body.Close() })
	return answer{resp.StatusCode, resp.Header, resp.Body}
}

// compact is JSON without what protobuf puts in at random: blanks, and the
// kind of blank in errors.
func compact(t *testing.T, body []byte) string {
	t.Helper()
	body = bytes.ReplaceAll(body, []byte("\u00a0"), []byte(" "))
	var out bytes.Buffer
	if err := json.Compact(&out, body); err != nil {
		t.Fatalf("%v: %s", err, body)
	}
	return out.String()
}

func (g *gateway) want(t *testing.T, path, body string, code int, want string) {
	t.Helper()
	resp := g.post(t, path, body)
	got, err := io.ReadAll(resp.body)
	if err != nil {
		t.Fatal(err)
	}
	if text := compact(t, got); resp.code != code || text != want || resp.header.Get("Content-Type") != "application/json" {
		t.Errorf("%s %s: %d %s, want %d %s", path, body, resp.code, text, code, want)
	}
}

func header(revision int) string {
	return fmt.Sprintf(`"header":{"cluster_id":"193","member_id":"10276657743932975437","revision":"%d","raft_term":"1"}`, revision)
}

func TestGateway(t *testing.T) {
	g := newGateway(t, memberOptions{})
	if g.conn != nil || g.mux != nil {
		t.Error("a gateway that nobody used has made something")
	}
	g.want(t, "/v3/kv/put", `{"key":"YQ==","value":"Yg==","nonsense":[1]}`, 200, `{`+header(2)+`}`)
	g.want(t, "/v3beta/kv/range", `{"key":"YQ==","limit":1}`, 200,
		`{`+header(2)+`,"kvs":[{"key":"YQ==","create_revision":"2","mod_revision":"2","version":"1","value":"Yg=="}],"count":"1"}`)
	g.want(t, "/v3/kv/range", ``, 400, `{"code":3,"message":"etcdserver: key is not provided"}`)
	g.want(t, "/v3/kv/range", `{"key":1}`, 400, `{"code":3,"message":"proto: (line 1:8): invalid value for bytes field key: 1"}`)
	g.want(t, "/v3/nothing", `{}`, 404, `{"code":5,"message":"Not Found"}`)
	g.want(t, "/v3/cluster/member/list", `{}`, 200, `{`+header(0)[:len(header(0))-len(`"revision":"0","raft_term":"1"}`)]+
		`"raft_term":"1"},"members":[{"ID":"10276657743932975437","name":"test","peerURLs":["http://localhost:2380"],"clientURLs":["http://localhost:2379"]}]}`)
	g.want(t, "/v3/lock/lock", `{"name":"bA==","lease":"1"}`, 200, `{`+header(3)+`,"key":"bC8x"}`)
	g.want(t, "/v3/election/leader", `{"name":"ZQ=="}`, 500, `{"code":2,"message":"election: no leader"}`)
	g.want(t, "/v3/lease/keepalive", `{"ID":"1"}`, 200, `{"result":{`+header(3)+`,"ID":"1","TTL":"60"}}`)
}

func TestGatewayWatch(t *testing.T) {
	g := newGateway(t, memberOptions{})
	resp := g.post(t, "/v3/watch", `{"create_request":{"key":"YQ=="}}`)
	lines := bufio.NewScanner(resp.body)
	next := func(want string) {
		t.Helper()
		if !lines.Scan() {
			t.Fatalf("the stream ended: %v", lines.Err())
		}
		if got := compact(t, lines.Bytes()); got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	}
	next(`{"result":{` + header(1) + `,"created":true}}`)
	g.want(t, "/v3/kv/put", `{"key":"YQ=="}`, 200, `{`+header(2)+`}`)
	next(`{"result":{` + header(2) + `,"events":[{"kv":{"key":"YQ==","create_revision":"2","mod_revision":"2","version":"1"}}]}}`)
	g.want(t, "/v3/kv/deleterange", `{"key":"YQ=="}`, 200, `{`+header(3)+`,"deleted":"1"}`)
	next(`{"result":{` + header(3) + `,"events":[{"type":"DELETE","kv":{"key":"YQ==","mod_revision":"3"}}]}}`)
}

// A client that hangs up takes its claim with it.
func TestGatewayClientGoes(t *testing.T) {
	g := newGateway(t, memberOptions{})
	(<-g.lockLater(g.ctx, 1)).want(t, "l/1", 2)
	ctx, hangUp := context.WithCancel(g.ctx)
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, g.http.URL+"/v3/lock/lock", strings.NewReader(`{"name":"bA==","lease":"2"}`))
	if err != nil {
		t.Fatal(err)
	}
	gone := make(chan error, 1)
	go func() {
		resp, err := http.DefaultClient.Do(req)
		if err == nil {
			_ = resp.Body.Close()
		}
		gone <- err
	}()
	g.see(t, "+l/1", "+l/2")
	hangUp()
	if err := <-gone; err == nil {
		t.Error("the lock was given twice")
	}
	g.see(t, "-l/2")
}

// Values have a limit, streams of them have none.
func TestGatewayLimit(t *testing.T) {
	g := newGateway(t, memberOptions{config: func(c *Config) { c.MaxRequestBytes = 1 << 10 }})
	const limit = gatewayBytes * (1<<10 + requestOverheadBytes)
	put := func(n int) string { return `{"key":"YQ==","value":"` + strings.Repeat("A", n) + `"}` }
	g.want(t, "/v3/kv/put", put(1<<12), 400, `{"code":3,"message":"etcdserver: request is too large"}`)
	g.want(t, "/v3/kv/put", put(1<<20), 429, `{"code":8,"message":"grpc: received message larger than max (786439 vs. 525312)"}`)
	g.want(t, "/v3/kv/put", put(limit), 400, `{"code":3,"message":"keelson: the JSON value is too large"}`)

	const request = `{"ID":"1","nonsense":"%s"}`
	stream := fmt.Sprintf(request, strings.Repeat("x", limit/4))
	resp := g.post(t, "/v3/lease/keepalive", strings.Repeat(stream, 8))
	answers := json.NewDecoder(resp.body)
	for i := range 8 {
		var answer struct{ Result struct{ TTL string } }
		if err := answers.Decode(&answer); err != nil || answer.Result.TTL != "60" {
			t.Fatalf("answer %d: %+v, %v", i, answer, err)
		}
	}
}

// A few bytes of JSON must not become a lot of memory, nor many large bodies at
// the same time.
func TestGatewayMemory(t *testing.T) {
	g := newGateway(t, memberOptions{})
	objects := func(n int) string { return `{"compare":[` + strings.Repeat("{},", n-2) + `{}]}` }
	g.want(t, "/v3/kv/txn", objects(maxObjects), 400, `{"code":3,"message":"etcdserver: too many operations in txn request"}`)
	g.want(t, "/v3/kv/txn", objects(maxObjects+1), 400, `{"code":3,"message":"keelson: the JSON value has more than 65536 objects"}`)

	if !g.room.TryAcquire(maxBodyBytes) {
		t.Fatal("requests that were answered still hold room")
	}
	large := `{"key":"YQ==","value":"` + strings.Repeat("A", bodyChunk) + `"}`
	g.want(t, "/v3/kv/put", large, 429, `{"code":8,"message":"keelson: too many large requests"}`)
	g.want(t, "/v3/kv/range", `{"key":"YQ==","count_only":true}`, 200, `{`+header(1)+`}`)
	g.room.Release(maxBodyBytes)
	if resp := g.post(t, "/v3/kv/put", large); resp.code != 200 {
		t.Errorf("with room again: %d", resp.code)
	}
}

// Large responses that clients do not read hold a bounded room, and not for
// ever.
func TestGatewayReplies(t *testing.T) {
	g := newGateway(t, memberOptions{})
	g.replyTimeout = 50 * time.Millisecond
	for _, key := range []string{"YQ==", "Yg=="} {
		if resp := g.post(t, "/v3/kv/put", `{"key":"`+key+`","value":"`+strings.Repeat("A", 1<<20)+`"}`); resp.code != 200 {
			t.Fatalf("put: %d", resp.code)
		}
	}
	const (
		list  = `{"key":"YQ==","range_end":"Yw=="}`
		small = `{"key":"YQ==","keys_only":true}`
	)
	if !g.replies.TryAcquire(maxReplyBytes) {
		t.Fatal("responses that were read still hold room")
	}
	g.want(t, "/v3/kv/range", list, 429, `{"code":8,"message":"etcdserver: too many requests"}`)
	if resp := g.post(t, "/v3/kv/range", small); resp.code != 200 {
		t.Errorf("a small response: %d", resp.code)
	}
	g.replies.Release(maxReplyBytes)

	conn, err := net.Dial("tcp", g.http.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := conn.(*net.TCPConn).SetReadBuffer(4096); err != nil {
		t.Fatal(err)
	}
	// One client alone may be served from the buffers of the kernel.
	for range 20 {
		request := fmt.Sprintf("POST /v3/kv/range HTTP/1.1\r\nHost: keelson\r\nContent-Length: %d\r\n\r\n%s", len(list), list)
		if _, err := conn.Write([]byte(request)); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := io.ReadFull(conn, make([]byte, 1)); err != nil {
		t.Fatalf("the first response: %v", err)
	}
	if err := g.replies.Acquire(g.ctx, maxReplyBytes); err != nil {
		t.Fatalf("the room of a client that does not read: %v", err)
	}
	g.replies.Release(maxReplyBytes)
	if resp := g.post(t, "/v3/kv/range", list); resp.code != 200 {
		t.Errorf("with room again: %d", resp.code)
	}
}

// A web page must not use the access of whoever looks at it.
func TestGatewayCrossOrigin(t *testing.T) {
	g := newGateway(t, memberOptions{})
	for _, tt := range []struct {
		header []string
		code   int
	}{
		{nil, 200},
		{[]string{"Origin", g.http.URL}, 200},
		{[]string{"Sec-Fetch-Site", "same-origin"}, 200},
		{[]string{"Origin", "http://example.com"}, 403},
		{[]string{"Origin", "http://example.com", "Content-Type", "text/plain"}, 403},
		{[]string{"Sec-Fetch-Site", "cross-site"}, 403},
	} {
		resp := g.post(t, "/v3/kv/put", `{"key":"YQ=="}`, tt.header...)
		if resp.code != tt.code || resp.header.Get("Access-Control-Allow-Origin") != "" {
			t.Errorf("%q: %d %v, want %d", tt.header, resp.code, resp.header, tt.code)
		}
	}
}

// There are no WebSockets, and nothing else that begins with a GET.
func TestGatewayMethods(t *testing.T) {
	g := newGateway(t, memberOptions{})
	req := httptest.NewRequestWithContext(g.ctx, http.MethodGet, "/v3/watch", nil)
	req.Header.Set("Connection", "Upgrade")
	req.Header.Set("Upgrade", "websocket")
	rec := httptest.NewRecorder()
	g.ServeHTTP(rec, req)
	if got := compact(t, rec.Body.Bytes()); rec.Code != http.StatusNotImplemented || got != `{"code":12,"message":"Method Not Allowed"}` {
		t.Errorf("%d %s", rec.Code, got)
	}
}

func TestGatewayClosed(t *testing.T) {
	g := newGateway(t, memberOptions{})
	if err := g.Close(); err != nil {
		t.Error(err)
	}
	if resp := g.post(t, "/v3/kv/range", `{"key":"YQ=="}`); resp.code != http.StatusServiceUnavailable {
		t.Errorf("after Close: %d", resp.code)
	}
}

// What parses JSON must not be surprised by any.
func FuzzGateway(f *testing.F) {
	for _, seed := range []string{``, `{`, `{"key":"YQ=="}`, `{"compare":[{}],"success":[{"request_txn":{}}]}`, `null`, `[{}]`, `{"key":"YQ==","limit":1e3}`, "\xff"} {
		f.Add("/v3/kv/txn", []byte(seed))
		f.Add("/v3/election/proclaim", []byte(seed))
		f.Add("/v3/election/campaign", []byte(seed))
		f.Add("/v3/lock/unlock", []byte(seed))
		f.Add("/v3/lease/keepalive", []byte(seed))
		f.Add("/v3/kv/range", []byte(seed))
	}
	const leader = `"leader":{"name":"ZQ==","key":"ZS83","rev":"2","lease":"-7"}`
	for path, seed := range map[string]string{
		"/v3/lock/lock": `{"name":"bA==","lease":"9223372036854775807"}`, "/v3/lock/unlock": `{"key":"bC83"}`,
		"/v3/election/leader": `{"name":""}`, "/v3/election/observe": `{"name":"ZQ=="}`,
		"/v3/election/proclaim": `{` + leader + `,"value":"djI="}`, "/v3/election/resign": `{` + leader + `}`,
		"/v3/watch":         `{"create_request":{"key":"YQ==","filters":["NOPUT"]}}{"cancel_request":{"watch_id":"0"}}`,
		"/v3/lease/grant":   `{"ID":"0","TTL":"-1"}`,
		"/v3beta/kv/range/": `{"sort_order":"DESCEND","sort_target":5}`,
	} {
		f.Add(path, []byte(seed))
	}
	m := startMember(f, memberOptions{})
	g := m.server.NewGateway()
	served := serve(m.grpc, g)
	f.Cleanup(func() {
		_ = g.Close()
		<-served
	})
	f.Fuzz(func(t *testing.T, path string, body []byte) {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://keelson", bytes.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		req.URL.Path = path
		if strings.Contains(path, "lock/lock") || strings.Contains(path, "campaign") || strings.Contains(path, "observe") || strings.Contains(path, "watch") {
			cancel() // these wait
		}
		rec := httptest.NewRecorder()
		g.ServeHTTP(rec, req)
		for values := json.NewDecoder(rec.Body); ; {
			var answer map[string]any
			if err := values.Decode(&answer); err == io.EOF {
				return
			} else if err != nil {
				t.Fatalf("%d is not JSON: %v", rec.Code, err)
			}
		}
	})
}
