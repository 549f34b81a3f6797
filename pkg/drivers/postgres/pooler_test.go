package postgres_test

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/keelson-io/keelson/pkg/drivers/postgres"
	"github.com/keelson-io/keelson/pkg/drivers/postgres/pgtest"
	"github.com/keelson-io/keelson/pkg/eventlog"
	"github.com/keelson-io/keelson/pkg/eventlog/logtest"
)

// startPgBouncer starts PgBouncer in transaction mode before server and
// returns the directory of its socket.
func startPgBouncer(t *testing.T) string {
	t.Helper()
	url(t, "") // skips without a server
	program, err := exec.LookPath("pgbouncer")
	if err != nil {
		t.Skip("PgBouncer is not installed: install pgbouncer")
	}
	dir, err := os.MkdirTemp("", "keelson-pgb-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	config := filepath.Join(dir, "pgbouncer.ini")
	if err := os.WriteFile(config, fmt.Appendf(nil, `[databases]
postgres = host=%s user=%s password=%s
[pgbouncer]
unix_socket_dir = %s
listen_port = 5432
auth_type = any
pool_mode = transaction
default_pool_size = 4
max_client_conn = 200
logfile = %s/log
`, server.Dir(), pgtest.User, pgtest.Password, dir, dir), 0o644); err != nil {
		t.Fatal(err)
	}
	cmd := server.Command(program, "--quiet", config)
	if err := server.Own(dir); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	return dir
}

// TestPgBouncer runs the suite through PgBouncer in transaction mode, where a
// connection's statements go to any session of the server.
func TestPgBouncer(t *testing.T) {
	dir := startPgBouncer(t)
	params := []string{"host=" + dir, "default_query_exec_mode=exec", "sslmode=disable"}
	h := harness(params...)
	logtest.Run(t, h)

	t.Run("Follow", func(t *testing.T) {
		log, other := opened(t, t.Name(), params...), opened(t, t.Name(), params...)
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		told, done := make(chan eventlog.Position, 1000), make(chan error, 1)
		go func() { done <- other.Follow(ctx, func(p eventlog.Position) { told <- p }) }()
		head := eventlog.Head{}
		appendPut(t, log, &head, "a")
		for p := range told {
			if p == 1 {
				break
			}
		}
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Follow: %v", err)
		}
	})

	t.Run("prepared", func(t *testing.T) {
		// PgBouncer may not keep prepared statements. Then the error says
		// what to do.
		var wg sync.WaitGroup
		for range 3 {
			log, err := postgres.Open(context.Background(), postgres.Options{
				URL: url(t, t.Name(), "host="+dir, "sslmode=disable"), Timeout: time.Second, Logger: quiet(),
			})
			if err != nil {
				checkHint(t, err)
				continue
			}
			wg.Go(func() {
				defer log.Close()
				for range 50 {
					if _, err := log.Head(context.Background()); err != nil {
						checkHint(t, err)
						return
					}
				}
			})
		}
		wg.Wait()
	})
}

func checkHint(t *testing.T, err error) {
	t.Helper()
	if !strings.Contains(err.Error(), "default_query_exec_mode=exec") {
		t.Errorf("prepared statements through the pooler: %v", err)
	}
}
