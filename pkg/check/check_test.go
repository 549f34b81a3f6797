package check

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/sirupsen/logrus"
	"github.com/sirupsen/logrus/hooks/test"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"github.com/keelson-io/keelson/pkg/drivers/sqlite"
	"github.com/keelson-io/keelson/pkg/eventlog"
	"github.com/keelson-io/keelson/pkg/raftlog"
	"github.com/keelson-io/keelson/pkg/store"
)

func quiet() *logrus.Entry {
	logger, _ := test.NewNullLogger()
	return logrus.NewEntry(logger)
}

// history lets a random history happen on log, and closes it.
func history(t *testing.T, log eventlog.Log, seed uint64, steps int) {
	t.Helper()
	s, err := store.Open(t.Context(), log, store.Options{Logger: quiet()})
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- s.Run(ctx) }()
	if node, ok := log.(*raftlog.Log); ok {
		for status, changed := node.Leadership(); !status.Leads; status, changed = node.Leadership() {
			<-changed
		}
	}
	r := rand.New(rand.NewPCG(seed, 1))
	key := func() []byte { return fmt.Appendf(nil, "key-%d", r.IntN(20)) }
	var leases []int64
	for i := range steps {
		if err := change(ctx, s, r, key, &leases, i < steps*2/3); err != nil {
			t.Fatal(err)
		}
	}
	stop()
	if err := errors.Join(<-done, log.Close()); err != nil {
		t.Fatal(err)
	}
}

func change(ctx context.Context, s *store.Store, r *rand.Rand, key func() []byte, leases *[]int64, compacts bool) error {
	lease := func() int64 {
		if len(*leases) == 0 || r.IntN(2) == 0 {
			return 0
		}
		return (*leases)[r.IntN(len(*leases))]
	}
	put := func() *pb.PutRequest {
		return &pb.PutRequest{Key: key(), Value: make([]byte, r.IntN(300)), Lease: lease()}
	}
	switch r.IntN(12) {
	case 0:
		l, err := s.LeaseGrant(ctx, 0, 60)
		if err == nil {
			*leases = append(*leases, l.ID)
		}
		return err
	case 1:
		if len(*leases) < 2 {
			return nil
		}
		i := r.IntN(len(*leases))
		id := (*leases)[i]
		*leases = slices.Delete(*leases, i, i+1)
		return s.LeaseRevoke(ctx, id)
	case 2, 3:
		_, err := s.DeleteRange(ctx, &pb.DeleteRangeRequest{Key: key(), RangeEnd: key()})
		return err
	case 4:
		var ops []*pb.RequestOp
		for _, k := range []string{"a", "b", "c"} {
			p := put()
			p.Key = append(p.Key, k...)
			ops = append(ops, &pb.RequestOp{Request: &pb.RequestOp_RequestPut{RequestPut: p}})
		}
		_, err := s.Txn(ctx, &pb.TxnRequest{Success: ops})
		return err
	case 5:
		if !compacts || r.IntN(4) > 0 {
			return nil
		}
		current, compacted := s.Revision()
		if rev := max(compacted, 0) + 1 + r.Int64N(20); rev <= current {
			_, err := s.Compact(ctx, &pb.CompactionRequest{Revision: rev, Physical: true})
			return err
		}
		return nil
	case 6:
		request := &pb.AlarmRequest{Action: pb.AlarmRequest_ACTIVATE, MemberID: 7, Alarm: pb.AlarmType_NOSPACE}
		_, err := s.Alarm(ctx, request)
		if err == nil {
			request.Action = pb.AlarmRequest_DEACTIVATE
			_, err = s.Alarm(ctx, request)
		}
		return err
	}
	_, err := s.Put(ctx, put())
	return err
}

func makeSQLite(t *testing.T, seed uint64, steps int) string {
	t.Helper()
	dir := t.TempDir()
	log, err := sqlite.Open(t.Context(), sqlite.Options{Dir: dir, Logger: quiet()})
	if err != nil {
		t.Fatal(err)
	}
	history(t, log, seed, steps)
	return dir
}

// files are the contents of a directory.
func files(t *testing.T, dir string) map[string]string {
	t.Helper()
	all := make(map[string]string)
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if e.IsDir() || strings.HasSuffix(e.Name(), ".lock") { // the lock is not data
			continue
		}
		data, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if err != nil {
			t.Fatal(err)
		}
		all[e.Name()] = string(data)
	}
	return all
}

// checkSQLite checks dir, and that this changes nothing.
func checkSQLite(t *testing.T, dir string) *Report {
	t.Helper()
	before := files(t, dir)
	r, err := SQLite(t.Context(), dir, nil)
	if err != nil {
		t.Fatal(err)
	}
	after := files(t, dir)
	if len(before) != len(after) {
		t.Errorf("there were %d files, and are %d", len(before), len(after))
	}
	for name, data := range before {
		if after[name] != data {
			t.Errorf("%s was changed", name)
		}
	}
	return r
}

// TestCleanSQLite: nothing is wrong with what a store has written.
func TestCleanSQLite(t *testing.T) {
	for _, seed := range []uint64{0, 2, 3, 5, 7} {
		dir := makeSQLite(t, seed, int(40*seed))
		r := checkSQLite(t, dir)
		if !r.Clean() {
			t.Errorf("seed %d: %+v", seed, r.Findings)
		}
		if seed == 7 && (r.Records == 0 || r.Keys == 0 || r.Revision < 50 || r.Compacted == 0) {
			t.Errorf("%+v", r)
		}
	}
}

// damage is what to do to a database by SQL, and the kind that must be found.
// In the statements {N} is the seq of a record with a value, {L} that of one
// without a key, {B} that of the first record of a batch, {I} that of another,
// and {M} the newest.
type damage struct {
	name string
	sql  string
	want Kind
}

var damages = []damage{
	{"header flipped", "UPDATE log SET header = FLIP(header) WHERE seq = {N}", KindHeader},
	{"header cut", "UPDATE log SET header = substr(header, 1, 3) WHERE seq = {N}", KindHeader},
	{"header of another", "UPDATE log SET header = (SELECT header FROM log WHERE seq = {N} - 1) WHERE seq = {N}", KindHeader},
	{"key flipped", "UPDATE log SET key = FLIP(key) WHERE seq = {N}", KindHeader},
	{"no key", "UPDATE log SET key = NULL WHERE seq = {N}", KindHeader},
	{"value flipped", "UPDATE log SET value = FLIP(value) WHERE seq = {N}", KindValue},
	{"no value", "UPDATE log SET value = NULL WHERE seq = {N}", KindValue},
	{"value of a grant", "UPDATE log SET value = header WHERE seq = {L}", KindValue},
	{"batch flipped", "UPDATE log SET batch = FLIP(batch) WHERE seq = {B}", KindBatch},
	{"no batch", "UPDATE log SET batch = NULL WHERE seq = {B}", KindBatch},
	{"batch in a batch", "UPDATE log SET batch = (SELECT batch FROM log WHERE seq = {B}) WHERE seq = {I}", KindBatch},
	{"revision", "UPDATE log SET revision = revision + 1 WHERE seq = {N}", KindColumn},
	{"row deleted", "DELETE FROM log WHERE seq = {N}", KindMissing},
	{"rows deleted", "DELETE FROM log WHERE seq BETWEEN {N} AND {N} + 5", KindMissing},
	{"old row deleted", "DELETE FROM log WHERE seq = (SELECT min(seq) FROM log)", KindCounters},
	{"rows swapped", "UPDATE log SET seq = -{N} WHERE seq = {N}; UPDATE log SET seq = {N} WHERE seq = {N} - 1; UPDATE log SET seq = {N} - 1 WHERE seq = -{N}", KindHeader},
	{"floor raised", "UPDATE kept SET floor = {N}", KindCounters},
	{"floor beyond", "UPDATE kept SET floor = {M} + 7", KindCounters},
	{"floor lowered", "UPDATE kept SET floor = 1, deleted = 1", KindMissing},
	{"deleted", "UPDATE kept SET deleted = deleted + 1", KindCounters},
	{"less deleted", "UPDATE kept SET deleted = deleted - 1", KindCounters},
	{"no counters", "DELETE FROM kept", KindCounters},
}

// places finds in a database what the statements of damages are about.
func places(t *testing.T, db *sql.DB, schema string) *strings.Replacer {
	t.Helper()
	one := func(query string) string {
		var n int64
		if err := db.QueryRowContext(t.Context(), strings.ReplaceAll(query, "kept", schema+"kept")).Scan(&n); err != nil {
			t.Fatalf("%s: %v", query, err)
		}
		return fmt.Sprint(n)
	}
	log := schema + "log"
	n := one("SELECT seq FROM " + log + " WHERE value IS NOT NULL AND length(value) > 10 AND seq > (SELECT floor + 20 FROM kept) AND seq < (SELECT max(seq) - 20 FROM " + log + ") ORDER BY seq LIMIT 1")
	return strings.NewReplacer(
		"{N}", n,
		"{M}", one("SELECT max(seq) FROM "+log),
		"{B}", one("SELECT min(seq) FROM "+log+" WHERE batch IS NOT NULL AND seq > (SELECT floor + 5 FROM kept)"),
		"{I}", one("SELECT min(seq) FROM "+log+" WHERE batch IS NULL AND seq > (SELECT floor + 5 FROM kept)"),
		"{L}", one("SELECT min(seq) FROM "+log+" WHERE key IS NULL AND value IS NULL AND seq > (SELECT floor FROM kept)"),
	)
}

func has(r *Report, kind Kind) bool {
	return slices.ContainsFunc(r.Findings, func(f Finding) bool {
		return f.Kind == kind && f.Where != "" && f.Problem != "" && f.Advice != "" && !strings.Contains(f.Problem+f.Where, "\n")
	})
}

func openSQL(t *testing.T, dir string) *sql.DB {
	t.Helper()
	db, err := sql.Open("sqlite", filepath.Join(dir, sqlite.FileName))
	if err != nil {
		t.Fatal(err)
	}
	db.SetMaxOpenConns(1)
	return db
}

func copyDir(t *testing.T, from string) string {
	t.Helper()
	to := t.TempDir()
	for name, data := range files(t, from) {
		if err := os.WriteFile(filepath.Join(to, name), []byte(data), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return to
}

// flip is FLIP of the damages in SQLite: the first byte becomes another.
func flipSQLite(statement string) string {
	for _, column := range []string{"header", "key", "value", "batch"} {
		statement = strings.ReplaceAll(statement, "FLIP("+column+")",
			"CAST(CASE WHEN substr("+column+", 2, 1) = x'01' THEN x'02' ELSE x'01' END || substr("+column+", 2) AS BLOB)")
	}
	return statement
}

func TestDamagedSQLite(t *testing.T) {
	clean := makeSQLite(t, 3, 400)
	for _, tt := range damages {
		t.Run(tt.name, func(t *testing.T) {
			dir := copyDir(t, clean)
			db := openSQL(t, dir)
			statement := flipSQLite(places(t, db, "").Replace(tt.sql))
			if _, err := db.ExecContext(t.Context(), statement); err != nil {
				t.Fatalf("%s: %v", statement, err)
			}
			if err := db.Close(); err != nil {
				t.Fatal(err)
			}
			if r := checkSQLite(t, dir); !has(r, tt.want) {
				t.Errorf("%s: %+v", statement, r.Findings)
			}
		})
	}
}
