package postgres_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/keelson-io/keelson/pkg/eventlog"
)

// bloatEnv is for how long TestBloat writes: 10m.
const bloatEnv = "KEELSON_BLOAT"

// The load of TestBloat: updates of as many keys, with what is superseded
// deleted now and then, as a kube-apiserver does it.
const (
	bloatRate    = 100 // a second
	bloatKeys    = 1000
	bloatValue   = 1024
	bloatCompact = 30 * time.Second
)

// TestBloat measures how much room the tables take under steady updates, with
// the server's default settings: it has to stop growing, and the head row's
// updates must stay within its page.
func TestBloat(t *testing.T) {
	length, err := time.ParseDuration(os.Getenv(bloatEnv))
	if err != nil {
		t.Skipf("takes long: set %s to how long it may write, at least 3m", bloatEnv)
	}
	log := opened(t, t.Name())
	c, err := pgx.Connect(context.Background(), server.URL("postgres"))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close(context.Background())

	var head eventlog.Head
	newest, superseded := make(map[int]int64), []int64(nil)
	tick := time.NewTicker(time.Second / bloatRate)
	defer tick.Stop()
	start := time.Now()
	compactAt, measureAt := start.Add(bloatCompact), start.Add(length/10)
	var middle, last bloat
	for time.Since(start) < length {
		<-tick.C
		key := rand.IntN(bloatKeys)
		b := put(head, fmt.Sprintf("/registry/leases/%06d", key))
		b.Records[0].Value = make([]byte, bloatValue)
		for i := range b.Records[0].Value {
			b.Records[0].Value[i] = byte(rand.Uint32()) // so that it is not compressed
		}
		if err := log.Append(context.Background(), &b); err != nil {
			t.Fatal(err)
		}
		head = eventlog.Head{Position: head.Position + 1, Seq: head.Seq + 1, Revision: head.Revision + 1}
		if seq := newest[key]; seq > 0 {
			superseded = append(superseded, seq)
		}
		newest[key] = head.Seq
		now := time.Now()
		if now.After(compactAt) {
			if err := log.Compact(context.Background(), superseded); err != nil {
				t.Fatal(err)
			}
			superseded, compactAt = nil, now.Add(bloatCompact)
		}
		if now.After(measureAt) {
			last = measureBloat(t, c)
			if middle == (bloat{}) && now.Sub(start) > length/2 {
				middle = last
			}
			measureAt = now.Add(length / 10)
			t.Logf("%v, %d updates: %+v", now.Sub(start).Round(time.Second), head.Seq, last)
		}
	}
	if last.HeadPages > 64 || float64(last.HeadHot) < 0.95*float64(last.HeadUpdates) {
		t.Errorf("the head row's table has %d pages, %d of %d updates stayed within their page", last.HeadPages, last.HeadHot, last.HeadUpdates)
	}
	if last.LogBytes > middle.LogBytes*3/2 {
		t.Errorf("the log grows: %d bytes, %d in the middle of the test", last.LogBytes, middle.LogBytes)
	}
}

// bloat is what the tables take.
type bloat struct {
	HeadPages, HeadUpdates, HeadHot, HeadDead, HeadVacuums int64
	LogBytes, LogIndexBytes, LogLive, LogDead, LogVacuums  int64
}

func measureBloat(t *testing.T, c *pgx.Conn) (b bloat) {
	t.Helper()
	const stats = `SELECT pg_relation_size(relid), pg_indexes_size(relid), n_tup_upd, n_tup_hot_upd, n_live_tup, n_dead_tup, autovacuum_count
		FROM pg_stat_user_tables WHERE schemaname = $1 AND relname = $2`
	var bytes, indexes, updates, hot, live int64
	if err := c.QueryRow(context.Background(), stats, schema(t.Name()), "head").Scan(&bytes, &indexes, &b.HeadUpdates, &b.HeadHot, &live, &b.HeadDead, &b.HeadVacuums); err != nil {
		t.Fatal(err)
	}
	b.HeadPages = bytes / 8192
	if err := c.QueryRow(context.Background(), stats, schema(t.Name()), "log").Scan(&b.LogBytes, &b.LogIndexBytes, &updates, &hot, &b.LogLive, &b.LogDead, &b.LogVacuums); err != nil {
		t.Fatal(err)
	}
	return b
}
