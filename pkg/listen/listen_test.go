package listen

import (
	"errors"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

func TestParseURL(t *testing.T) {
	for in, want := range map[string]URL{
		"http://127.0.0.1:2379":    {"http", "127.0.0.1:2379"},
		"https://[::1]:2379":       {"https", "[::1]:2379"},
		"http://:2379":             {"http", ":2379"},
		"http://localhost:2379/":   {"http", "localhost:2379"},
		"unix:///run/keelson.sock": {"unix", "/run/keelson.sock"},
		"unixs:///run/k.sock":      {"unixs", "/run/k.sock"},
		"unix://data/k.sock":       {"unix", "data/k.sock"},
		"unix:k.sock":              {"unix", "k.sock"},
	} {
		if got, err := ParseURL(in); err != nil || got != want {
			t.Errorf("%s: %+v, %v, want %+v", in, got, err, want)
		}
	}
	for in, want := range map[string]string{
		"127.0.0.1:2379":         "write http://host:port",
		"localhost:2379":         "scheme must be",
		"tcp://127.0.0.1:2379":   "scheme must be http, https, unix or unixs",
		"http://127.0.0.1":       "has no port: write http://host:2379",
		"http://127.0.0.1:99999": "0 to 65535",
		"http://1.2.3.4:1/path":  "scheme, host and port only",
		"unix://":                "names no socket",
		"":                       "scheme must be",
	} {
		if _, err := ParseURL(in); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want it to say %q", in, err, want)
		}
	}
	if _, err := ParseURLs([]string{"http://127.0.0.1:1", "https://127.0.0.1:1"}); err == nil || !strings.Contains(err.Error(), "twice") {
		t.Errorf("one address twice: %v", err)
	}
}

func TestURLReach(t *testing.T) {
	for in, want := range map[string][2]bool{ // loopback, wildcard
		"http://127.0.0.1:1": {true, false},
		"http://localhost:1": {true, false},
		"http://[::1]:1":     {true, false},
		"http://10.0.0.1:1":  {false, false},
		"http://0.0.0.0:1":   {false, true},
		"http://[::]:1":      {false, true},
		"http://:1":          {false, true},
		"unix:///k":          {true, false},
	} {
		u, err := ParseURL(in)
		if got := [2]bool{u.Loopback(), u.Wildcard()}; err != nil || got != want {
			t.Errorf("%s: loopback, wildcard = %v (%v), want %v", in, got, err, want)
		}
	}
}

func TestUnixSocketMode(t *testing.T) {
	gid := strconv.Itoa(os.Getgid())
	for _, tt := range []struct {
		opt  SocketOptions
		want fs.FileMode
	}{
		{SocketOptions{}, 0o600},
		{SocketOptions{Mode: 0o666}, 0o666},
		{SocketOptions{Group: gid}, 0o660},
		{SocketOptions{Group: gid, Mode: 0o620}, 0o620},
	} {
		path := filepath.Join(t.TempDir(), "run", "k.sock")
		l, err := Listen(t.Context(), URL{"unix", path}, tt.opt)
		if err != nil {
			t.Fatal(err)
		}
		info, err := os.Stat(path)
		if err != nil || info.Mode().Perm() != tt.want {
			t.Errorf("%+v: mode %v, %v, want %v", tt.opt, info.Mode().Perm(), err, tt.want)
		}
		wantDir := fs.FileMode(0o700)
		if tt.opt.Group != "" {
			wantDir = 0o750
		}
		if info, err := os.Stat(filepath.Dir(path)); err != nil || info.Mode().Perm() != wantDir {
			t.Errorf("%+v: mode of the directory %v, %v, want %v", tt.opt, info.Mode().Perm(), err, wantDir)
		}
		_ = l.Close()
		if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("socket left behind: %v", err)
		}
	}
	_, err := Listen(t.Context(), URL{"unix", filepath.Join(t.TempDir(), "k")}, SocketOptions{Group: "no-such-group"})
	if err == nil || !strings.Contains(err.Error(), "no-such-group") {
		t.Errorf("unknown group: %v", err)
	}
}

func TestWhatIsInTheWay(t *testing.T) {
	dir := t.TempDir()
	stale := filepath.Join(dir, "stale")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: stale, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	_ = l.Close()
	fresh, err := Listen(t.Context(), URL{"unix", stale}, SocketOptions{})
	if err != nil {
		t.Fatalf("a stale socket must be replaced: %v", err)
	}
	defer func() { _ = fresh.Close() }()

	if _, err := Listen(t.Context(), URL{"unix", stale}, SocketOptions{}); !errors.Is(err, ErrInUse) {
		t.Errorf("a live socket: %v", err)
	}
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Listen(t.Context(), URL{"unix", file}, SocketOptions{}); err == nil || !strings.Contains(err.Error(), "not a socket") {
		t.Errorf("a file: %v", err)
	}
	if kept, _ := os.ReadFile(file); string(kept) != "precious" {
		t.Error("the file is gone")
	}
	if _, err := Listen(t.Context(), URL{"unix", "/" + strings.Repeat("x", 120)}, SocketOptions{}); err == nil || !strings.Contains(err.Error(), "107") {
		t.Errorf("a long path: %v", err)
	}

	tcp := listenOn(t, "http://127.0.0.1:0")
	if _, err := Listen(t.Context(), URL{"http", tcp.Addr().String()}, SocketOptions{}); !errors.Is(err, ErrInUse) {
		t.Errorf("a used port: %v", err)
	}
}
