package postgres

import (
	"context"
	"fmt"
	"hash/fnv"
	"strings"

	"github.com/jackc/pgx/v5"
)

// migrations[i] brings a schema from version i to i+1. What has been released
// is never changed, only followed by another.
var migrations = []string{
	// Of a batch's records the first carries the batch id with a checksum,
	// the others NULL; so log_position has one entry for each batch.
	// header is eventlog.AppendHeader; value is NULL unless it is a put;
	// revision repeats the header's main revision, for people.
	//
	// head and kept have one row each. head is what every Append changes:
	// no index but the key, and room on its page, so that the change stays
	// within the page (HOT). kept is what Compact changes: floor is the
	// highest seq deleted, deleted the number of records deleted, freed their
	// bytes. Above floor seqs are dense, and in all there are
	// (head.seq - deleted) rows. For lessor and renewal see lessor.go, for
	// reader see readers.go.
	`CREATE TABLE keelson.log (
		seq      bigint PRIMARY KEY,
		position bigint NOT NULL,
		revision bigint NOT NULL,
		batch    bytea,
		header   bytea NOT NULL,
		key      bytea,
		value    bytea
	);
	CREATE UNIQUE INDEX log_position ON keelson.log (position) WHERE batch IS NOT NULL;
	CREATE TABLE keelson.head (
		id       int PRIMARY KEY CHECK (id = 1),
		position bigint NOT NULL,
		seq      bigint NOT NULL,
		revision bigint NOT NULL,
		batch    bytea NOT NULL,
		bytes    bigint NOT NULL,
		epoch    bigint NOT NULL,
		fence    bigint NOT NULL
	) WITH (fillfactor = 10);
	INSERT INTO keelson.head VALUES (1, 0, 0, 0, '', 0, 1, 1);
	CREATE TABLE keelson.kept (
		id       int PRIMARY KEY CHECK (id = 1),
		floor    bigint NOT NULL,
		deleted  bigint NOT NULL,
		freed    bigint NOT NULL
	) WITH (fillfactor = 10);
	INSERT INTO keelson.kept VALUES (1, 0, 0, 0);
	CREATE TABLE keelson.lessor (
		id       int PRIMARY KEY CHECK (id = 1),
		holder   text NOT NULL,
		until    timestamptz NOT NULL
	) WITH (fillfactor = 10);
	INSERT INTO keelson.lessor VALUES (1, '', now());
	CREATE TABLE keelson.renewal (
		lease    bigint PRIMARY KEY,
		until    timestamptz NOT NULL,
		expired  boolean NOT NULL
	) WITH (fillfactor = 50);
	CREATE TABLE keelson.reader (
		instance text PRIMARY KEY,
		seq      bigint NOT NULL,
		at       timestamptz NOT NULL
	) WITH (fillfactor = 50);
	CREATE VIEW keelson.live AS
		SELECT encode(key, 'escape') AS key, revision, value
		FROM keelson.log
		WHERE seq IN (SELECT max(seq) FROM keelson.log WHERE key IS NOT NULL GROUP BY key)
			AND value IS NOT NULL
		ORDER BY log.key;`,
	// What the lessor tells the other instances: see lessor.go.
	`CREATE TABLE keelson.deadline (
		lease    bigint PRIMARY KEY,
		until    timestamptz NOT NULL
	) WITH (fillfactor = 50);`,
	// The data's name in those of its backups: see Name.
	`CREATE TABLE keelson.name (
		id       int PRIMARY KEY CHECK (id = 1),
		name     text NOT NULL
	);
	INSERT INTO keelson.name VALUES (1, substr(md5(random()::text || clock_timestamp()::text), 1, 16));`,
}

// tuning is tried after the migrations; a database that has no such settings
// works without. Dead rows of the log come in bursts, from compactions, and
// those of head all the time.
const tuning = `ALTER TABLE keelson.log SET (
		autovacuum_vacuum_scale_factor = 0.05, autovacuum_analyze_scale_factor = 0.1,
		toast.autovacuum_vacuum_scale_factor = 0.05);
	ALTER TABLE keelson.head SET (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 2000);
	ALTER TABLE keelson.kept SET (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 2000);`

const (
	selectDurable = "SELECT current_setting('synchronous_commit'), current_setting('fsync')"
	selectSchema  = "SELECT count(*) FROM pg_namespace WHERE nspname = $1"
	selectTable   = "SELECT count(*) FROM information_schema.tables WHERE table_schema = $1 AND table_name = 'version'"
	selectVersion = "SELECT version FROM keelson.version"
	lockSchema    = "SELECT pg_advisory_xact_lock($1)"
	createSchema  = "CREATE SCHEMA "
	createVersion = "CREATE TABLE keelson.version (id int PRIMARY KEY CHECK (id = 1), version int NOT NULL); INSERT INTO keelson.version VALUES (1, 0)"
	updateVersion = "UPDATE keelson.version SET version = $1"
)

// statements are those that name a table. In the constants the schema is the
// default one; here it is the log's.
type statements struct {
	append, appendNotify, head, raiseFence      string
	load, loadState, tail, values, missing      string
	compact, vacuum, size                       string
	holdKept, scanState, scan                   string
	claim, release, renew, expire, left, forget string
	report, leave, behind                       string
	lockHead, restart, insert, batches          string
	holds, expired, note, noted                 string

	// Those of an import.
	readers, bytes, deleteLog, deleteLeases, deleteLapsed, updateKept, updateImported, rename string

	name string
}

func newStatements(schema string) *statements {
	in := func(sql string) string { return inSchema(sql, schema) }
	return &statements{
		append: in(appendBatch), appendNotify: in(appendBatchNotify),
		head: in(selectHead), raiseFence: in(updateFence),
		load: in(selectLoad), loadState: in(selectState),
		tail: in(selectTail), values: in(selectValues), missing: in(selectMissing),
		holdKept: in(lockKept), scanState: in(selectPast), scan: in(selectScan),
		compact: in(deleteRecords), vacuum: in(vacuumLog), size: in(selectSize),
		claim: in(claimLessor), release: in(releaseLessor),
		renew: in(renewLeases), expire: in(expireLeases), left: in(selectLeft), forget: in(forgetLeases),
		report: in(reportReader), leave: in(deleteReader), behind: in(selectBehind),
		lockHead: in(lockHead), restart: in(updateLost), insert: in(insertMark), batches: in(selectBatches),
		holds: in(selectHolds), expired: in(selectExpired), note: in(noteLeases), noted: in(selectNoted),

		readers: in(selectReaders), bytes: in(selectBytes),
		deleteLog: in(deleteLog), deleteLeases: in(deleteLeases), deleteLapsed: in(deleteLapsed),
		updateKept: in(updateKept), updateImported: in(updateImported),
		rename: in(updateName),

		name: in(selectName),
	}
}

// inSchema returns sql with the log's schema instead of the default one.
func inSchema(sql, schema string) string {
	return strings.ReplaceAll(sql, DefaultSchema+".", pgx.Identifier{schema}.Sanitize()+".")
}

// migrate brings the schema to the newest version. Instances that start at
// the same time wait for each other.
func (l *Log) migrate(ctx context.Context, c *pgx.Conn) error {
	version, err := l.version(ctx, c)
	if err != nil {
		return err
	}
	if version == len(migrations) {
		return nil // needs no right to create anything
	}
	if err := pgx.BeginFunc(ctx, c, func(tx pgx.Tx) error { return l.migrateIn(ctx, tx) }); err != nil {
		return err
	}
	l.tune(ctx, c)
	return nil
}

// migrateIn is migrate in a transaction.
func (l *Log) migrateIn(ctx context.Context, tx pgx.Tx) error {
	lock := fnv.New64a()
	_, _ = lock.Write([]byte("keelson/" + l.set.schema)) // never fails
	if _, err := tx.Exec(ctx, lockSchema, int64(lock.Sum64())); err != nil {
		return err
	}
	version, err := l.version(ctx, tx)
	if err != nil || version == len(migrations) {
		return err
	}
	return l.migrateFrom(ctx, tx, version)
}

// tune sets what is good for tables that were made.
func (l *Log) tune(ctx context.Context, c *pgx.Conn) {
	if isCockroach(c) {
		return
	}
	if _, err := c.Exec(ctx, inSchema(tuning, l.set.schema), pgx.QueryExecModeSimpleProtocol); err != nil {
		l.logger.WithError(err).Info("the tables keep the database's default settings for autovacuum")
	}
}

// querier is what connections and transactions have in common.
type querier interface {
	QueryRow(ctx context.Context, sql string, args ...any) pgx.Row
}

// version returns the version of the schema: 0 if there is none, -1 if not
// even the schema is there.
func (l *Log) version(ctx context.Context, q querier) (int, error) {
	var schemas, tables, version int
	if err := q.QueryRow(ctx, selectSchema, l.set.schema).Scan(&schemas); err != nil || schemas == 0 {
		return -1, err
	}
	if err := q.QueryRow(ctx, selectTable, l.set.schema).Scan(&tables); err != nil || tables == 0 {
		return 0, err
	}
	if err := q.QueryRow(ctx, inSchema(selectVersion, l.set.schema)).Scan(&version); err != nil {
		return 0, err
	}
	if version > len(migrations) {
		return 0, fmt.Errorf("%w: it has version %d, this keelson knows up to %d", ErrNewer, version, len(migrations))
	}
	return version, nil
}

func (l *Log) migrateFrom(ctx context.Context, tx pgx.Tx, version int) error {
	// Several statements in one string go by the simple protocol only.
	exec := func(sql string) error {
		_, err := tx.Exec(ctx, inSchema(sql, l.set.schema), pgx.QueryExecModeSimpleProtocol)
		return err
	}
	if version < 0 {
		if err := exec(createSchema + pgx.Identifier{l.set.schema}.Sanitize()); err != nil {
			return fmt.Errorf("make the schema: %w", err)
		}
	}
	if version <= 0 {
		if err := exec(createVersion); err != nil {
			return fmt.Errorf("make the schema: %w", err)
		}
		version = 0
	}
	for i, step := range migrations[version:] {
		if err := exec(step); err != nil {
			return fmt.Errorf("migrate from schema version %d: %w", version+i, err)
		}
	}
	_, err := tx.Exec(ctx, inSchema(updateVersion, l.set.schema), len(migrations))
	return err
}
