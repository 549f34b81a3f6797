package listen

import (
	"strings"
	"testing"
)

// FuzzParseURLs: a list is refused with a message of one line, or each URL in
// it names a place that reads the same again.
func FuzzParseURLs(f *testing.F) {
	for _, seed := range []string{
		"http://127.0.0.1:2379", "https://[::1]:0,unix:///run/k.sock", "unixs://k", "unix:k", "unix:", "http://:1", "http://[::1%25eth0]:1",
		"http://localhost:2379/", " http://127.0.0.1:1 ,, ", "http://a:b@c:1", "http://127.0.0.1:1?q#f", "tcp://x:1", "http://[::1:2", "://", "%", "unix://a/../b",
		"http://127.0.0.1:65536", "http://127.0.0.1:00", "unix:///a%2fb", "unix://\x00", "http://\x1b[2J:1",
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, list string) {
		urls, err := ParseURLs(strings.Split(list, ","))
		if err != nil {
			if err.Error() == "" || strings.ContainsAny(err.Error(), "\n\r\x1b\x00") {
				t.Fatalf("the message %q", err)
			}
			return
		}
		for _, u := range urls {
			if u.Address == "" || u.Secure() != (u.Scheme == "https" || u.Scheme == "unixs") || u.Wildcard() && u.Loopback() {
				t.Fatalf("%q: %+v", list, u)
			}
			again, err := ParseURL(u.String())
			if err != nil && u.Network() == "unix" {
				continue // a path may hold what a URL escapes
			}
			if err != nil || again != u {
				t.Fatalf("%q: %+v, read again %+v, %v", list, u, again, err)
			}
		}
	})
}
