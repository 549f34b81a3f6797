package postgres_test

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/keelson-io/keelson/pkg/drivers/postgres"
	"github.com/keelson-io/keelson/pkg/drivers/postgres/pgtest"
	"github.com/keelson-io/keelson/pkg/listen/certtest"
)

// startTLS starts a server with TLS on a port of 127.0.0.1, for which its
// certificate is, and returns the port.
func startTLS(t *testing.T, ca *certtest.Authority) (db *pgtest.Server, port string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_, port, err = net.SplitHostPort(l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	_ = l.Close()
	db = pgtest.ForTest(t, "listen_addresses=127.0.0.1", "port="+port)
	ca.Issue(t, db.Dir(), "server")
	certificate, key := filepath.Join(db.Dir(), "server.crt"), filepath.Join(db.Dir(), "server.key")
	c, err := pgx.Connect(context.Background(), db.URL("postgres"))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close(context.Background())
	for _, file := range []string{certificate, key} {
		if err := db.Own(file); err != nil {
			t.Fatal(err)
		}
	}
	for _, sql := range []string{
		"ALTER SYSTEM SET ssl_cert_file = '" + certificate + "'", "ALTER SYSTEM SET ssl_key_file = '" + key + "'",
		"ALTER SYSTEM SET ssl = on", "SELECT pg_reload_conf()",
	} {
		if _, err := c.Exec(context.Background(), sql); err != nil {
			t.Fatal(err)
		}
	}
	return db, port
}

// TestTLS connects by the usual parameters, with a password that is not in the
// URL; and not to a server that is not the one it should be.
func TestTLS(t *testing.T) {
	ca, other, dir := certtest.New(t), certtest.New(t), t.TempDir()
	_, port := startTLS(t, ca)
	file := func(name string) string { return filepath.Join(dir, name) }
	ca.Write(t, file("ca.crt"))
	other.Write(t, file("other.crt"))
	write := func(name, text string) {
		if err := os.WriteFile(file(name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("pass", fmt.Sprintf("*:%s:postgres:%s:%s\n", port, pgtest.User, pgtest.Password))
	write("service", fmt.Sprintf("[keelson]\nhost=127.0.0.1\nport=%s\ndbname=postgres\nuser=%s\nsslmode=verify-full\nsslrootcert=%s\n",
		port, pgtest.User, file("ca.crt")))
	t.Setenv("PGPASSFILE", file("pass"))
	t.Setenv("PGSERVICEFILE", file("service"))
	at := func(host, params string) string {
		return fmt.Sprintf("postgres://%s@%s:%s/postgres?%s", pgtest.User, host, port, params)
	}
	open := func(url string, timeout time.Duration) error {
		log, err := postgres.Open(context.Background(), postgres.Options{URL: url, Timeout: timeout, Logger: quiet()})
		if err == nil {
			err = log.Close()
		}
		return err
	}
	// The server's certificate may take a moment to be loaded.
	good := at("127.0.0.1", "sslmode=verify-full&sslrootcert="+file("ca.crt"))
	for deadline := time.Now().Add(10 * time.Second); ; {
		err := open(good, time.Second)
		if err == nil {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
	}
	if err := open("postgres:///?service=keelson", 5*time.Second); err != nil {
		t.Errorf("by the service file: %v", err)
	}
	for name, tt := range map[string]struct{ url, want string }{
		"another authority": {at("127.0.0.1", "sslmode=verify-full&sslrootcert="+file("other.crt")), "x509"},
		"another host":      {at("localhost", "sslmode=verify-full&sslrootcert="+file("ca.crt")), "x509"},
		"no authority":      {at("127.0.0.1", "sslmode=verify-full&sslrootcert="+file("none.crt")), "none.crt"},
		"wrong password":    {strings.Replace(good, "@", ":secret@", 1), "password authentication failed"},
	} {
		if err := open(tt.url, 300*time.Millisecond); err == nil || !strings.Contains(err.Error(), tt.want) ||
			strings.Contains(err.Error(), pgtest.Password) || strings.Contains(err.Error(), "secret") {
			t.Errorf("%s: %v, want %s, and no password", name, err, tt.want)
		}
	}
}
