package postgres

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/sirupsen/logrus"

	"github.com/keelson-io/keelson/pkg/eventlog"
)

const (
	// setPatience is for this transaction: its source may be slow.
	setPatience = "SELECT set_config('statement_timeout', '0', true), set_config('idle_in_transaction_session_timeout', '0', true)"

	selectReaders = "SELECT count(*) FROM keelson.reader WHERE at > now() - $1 * interval '1 second'"

	selectPosition = "SELECT position FROM keelson.head WHERE id = 1"

	selectBytes = "SELECT bytes FROM keelson.head WHERE id = 1"

	// deleteLog leaves what others are just reading to them, as TRUNCATE does
	// not.
	deleteLog    = "DELETE FROM keelson.log"
	deleteLeases = "DELETE FROM keelson.renewal"
	deleteLapsed = "DELETE FROM keelson.deadline"

	updateKept     = "UPDATE keelson.kept SET floor = $1, deleted = $1, freed = $2 WHERE id = 1"
	updateImported = `UPDATE keelson.head
		SET position = $1, seq = $2, revision = $3, batch = $4, bytes = $5, epoch = epoch + 1, fence = fence + 1 WHERE id = 1`

	updateName = "UPDATE keelson.name SET name = substr(md5(random()::text || clock_timestamp()::text || name), 1, 16) WHERE id = 1"
	selectName = "SELECT name FROM keelson.name WHERE id = 1"

	// importBytes and importRows of records are sent at a time.
	importBytes = 4 << 20
	importRows  = 10_000
)

// Name returns what tells the data from any other: 16 hexadecimal digits, drawn
// when the schema is made, and by each import. Copies of the database have the
// same.
func (l *Log) Name(ctx context.Context) (name string, err error) {
	err = l.try(ctx, func(ctx context.Context, c *pgx.Conn) error { return c.QueryRow(ctx, l.sql.name).Scan(&name) })
	return name, err
}

// logColumns are those of the table log.
var logColumns = []string{"seq", "position", "revision", "batch", "header", "key", "value"}

// ImportOptions are those of NewImporter.
type ImportOptions struct {
	// URL is that of Options.
	URL string

	// Replace makes the import take the place of the data that there is, and
	// be done under instances that run; without, there must be neither.
	Replace bool

	// Logger is logrus's standard logger unless set.
	Logger *logrus.Entry
}

// Importer makes the data of a schema of records, all or nothing: in one
// transaction, and so it does the schema if there is none.
//
// Instances that run notice the new epoch and load the data again. The records
// continue the seqs and positions of those before, so that nobody who looks for
// one of the old records finds a new one in its place.
type Importer struct {
	log  *Log
	conn *pgxpool.Conn
	tx   pgx.Tx
	made bool  // the schema, in tx
	base place // the head that there was
	size int64 // bytes appended before, and by this import

	rows    [][]any
	pending int64 // bytes in rows
	arena   []byte
	last    []byte // id of the newest batch
}

// NewImporter begins an import, which Finish or Abort ends; the schema is made
// if it is not there. Appends of others wait until then. The errors are
// ErrExists, ErrInUse, or those of Open.
func NewImporter(ctx context.Context, opt ImportOptions) (*Importer, error) {
	l, err := connect(ctx, Options{URL: opt.URL, Logger: opt.Logger})
	if err != nil {
		return nil, err
	}
	im := &Importer{log: l}
	if err := im.begin(ctx, opt.Replace); err != nil {
		return nil, errors.Join(fmt.Errorf("import into %s: %w", l.set, classify(err)), im.Abort())
	}
	return im, nil
}

// CheckImport returns the errors of NewImporter that can be told by looking, and
// changes nothing.
func CheckImport(ctx context.Context, opt ImportOptions) error {
	set, err := parseURL(opt.URL)
	if err != nil {
		return err
	}
	c, err := pgx.ConnectConfig(ctx, set.pool.ConnConfig)
	if err == nil {
		err = pgx.BeginTxFunc(ctx, c, pgx.TxOptions{AccessMode: pgx.ReadOnly}, func(tx pgx.Tx) error {
			version, err := (&Log{set: set}).version(ctx, tx)
			if err != nil || version <= 0 || opt.Replace {
				return err
			}
			var head eventlog.Position
			if err := tx.QueryRow(ctx, inSchema(selectPosition, set.schema)).Scan(&head); err != nil {
				return err
			}
			return mayImport(ctx, tx, inSchema(selectReaders, set.schema), head)
		})
		bounded, cancel := context.WithTimeout(context.Background(), pingTimeout)
		defer cancel()
		_ = c.Close(bounded) // it has changed nothing
	}
	if err != nil {
		return fmt.Errorf("import into %s: %w", set, classify(err))
	}
	return nil
}

// mayImport refuses data that is not to be replaced, and instances that run on
// it; readers tells how many.
func mayImport(ctx context.Context, tx pgx.Tx, readers string, head eventlog.Position) error {
	var n int
	if err := tx.QueryRow(ctx, readers, readerTerm.Seconds()).Scan(&n); err != nil {
		return err
	}
	switch {
	case head > 0:
		return ErrExists
	case n > 0:
		return fmt.Errorf("%w: %d keelson run on it, or have not ended well within the last %v", ErrInUse, n, readerTerm)
	}
	return nil
}

func (im *Importer) begin(ctx context.Context, replace bool) (err error) {
	if im.conn, err = im.log.pool.Acquire(ctx); err != nil {
		return err
	}
	if err := im.beginMigrated(ctx, im.conn.Conn()); err != nil {
		return err
	}
	sql := im.log.sql
	var epoch int64
	if err := im.tx.QueryRow(ctx, sql.lockHead).Scan(&im.base.position, &im.base.seq, &im.base.revision, &epoch, &im.last); err != nil {
		return err
	}
	if !replace {
		if err := mayImport(ctx, im.tx, sql.readers, im.base.position); err != nil {
			return err
		}
	}
	if err := im.tx.QueryRow(ctx, sql.bytes).Scan(&im.size); err != nil {
		return err
	}
	for _, remove := range []string{sql.deleteLog, sql.deleteLeases, sql.deleteLapsed} {
		if _, err := im.tx.Exec(ctx, remove); err != nil {
			return err
		}
	}
	if _, err := im.tx.Exec(ctx, sql.rename); err != nil {
		return err
	}
	_, err = im.tx.Exec(ctx, sql.updateKept, im.base.seq, im.size)
	return err
}

// beginMigrated begins the transaction, in which the schema is that of this
// version. One that there is is migrated before, so that who uses it does not
// wait; nobody can use one that there is not.
func (im *Importer) beginMigrated(ctx context.Context, c *pgx.Conn) error {
	version, err := im.log.version(ctx, c)
	if err != nil {
		return err
	}
	if im.made = version <= 0 && !isCockroach(c); !im.made {
		if err := im.log.migrate(ctx, c); err != nil {
			return err
		}
	}
	if im.tx, err = c.Begin(ctx); err != nil {
		return err
	}
	if _, err := im.tx.Exec(ctx, setPatience); err != nil || !im.made {
		return err
	}
	return im.log.migrateIn(ctx, im.tx)
}

// Base returns the position and seq that the records continue.
func (im *Importer) Base() (eventlog.Position, int64) { return im.base.position, im.base.seq }

// Add adds the next record; id is that of the batch that it is the first of,
// or nil. It does not keep the record.
func (im *Importer) Add(ctx context.Context, r *eventlog.Record, id *eventlog.BatchID) error {
	var batch, header, key, value []byte
	if id != nil {
		batch = eventlog.EncodeBatchID(r.Seq, *id)
		im.last = append([]byte(nil), id[:]...)
	}
	start := len(im.arena)
	im.arena = eventlog.AppendHeader(im.arena, r)
	header = im.arena[start:len(im.arena):len(im.arena)]
	if len(r.Key) > 0 {
		key = im.keep(r.Key)
	}
	if r.Kind == eventlog.KindPut {
		value = im.keep(r.Value)
	}
	im.rows = append(im.rows, []any{r.Seq, int64(r.Position), r.Revision.Main, batch, header, key, value})
	bytes := int64(rowOverhead + len(header) + len(key) + len(value))
	im.size += bytes
	if im.pending += bytes; im.pending < importBytes && len(im.rows) < importRows {
		return nil
	}
	return im.flush(ctx)
}

// keep copies b, not nil, to where it stays until flush.
func (im *Importer) keep(b []byte) []byte {
	start := len(im.arena)
	im.arena = append(im.arena, b...)
	return im.arena[start:len(im.arena):len(im.arena)]
}

// flush sends the rows that wait.
func (im *Importer) flush(ctx context.Context) error {
	if len(im.rows) == 0 {
		return nil
	}
	_, err := im.tx.CopyFrom(ctx, pgx.Identifier{im.log.set.schema, "log"}, logColumns, pgx.CopyFromRows(im.rows))
	im.rows, im.arena, im.pending = im.rows[:0], im.arena[:0], 0
	return classify(err)
}

// Finish makes what was added the data of the schema: it is durable then. After
// an error nothing was changed, unless the error says that it is not known. The
// Importer cannot be used after that.
func (im *Importer) Finish(ctx context.Context, head eventlog.Head) error {
	err := im.flush(ctx)
	if err == nil {
		_, err = im.tx.Exec(ctx, im.log.sql.updateImported, int64(head.Position), head.Seq, head.Revision, im.last, im.size)
	}
	if err == nil {
		// To its end: what becomes of one that is cut off is not known.
		if err = im.tx.Commit(context.WithoutCancel(ctx)); err != nil && !notDone(err) {
			err = fmt.Errorf("%w: the connection was lost in the commit: look whether the data is there: %w", eventlog.ErrUnknown, err)
		}
	}
	if err == nil && im.made {
		im.log.tune(ctx, im.conn.Conn())
	}
	return errors.Join(err, im.Abort())
}

// Abort ends an import that is not to be finished. Nothing was changed.
func (im *Importer) Abort() error {
	if im.tx != nil {
		ctx, cancel := context.WithTimeout(context.Background(), pingTimeout)
		defer cancel()
		_ = im.tx.Rollback(ctx) // else the server does, when the connection is gone
		im.tx = nil
	}
	if im.conn != nil {
		im.conn.Release()
		im.conn = nil
	}
	return im.log.Close()
}
