package sqlite

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/keelson-io/keelson/pkg/durable"
	"github.com/keelson-io/keelson/pkg/eventlog"
)

const (
	// applicationID is "keel" in the file's header, where file(1) finds it.
	applicationID = 0x6b65656c

	// pageSize is fixed when a file is made; see the package comment.
	pageSize = 4096

	magic = "SQLite format 3\x00"
)

// migrations[i] brings a file from schema version i (PRAGMA user_version) to
// i+1. What has been released is never changed, only followed by another. Columns
// of log are known to tree.go, too.
var migrations = []func(*conn) error{
	// Of a batch's records the first carries the batch id with a checksum,
	// the others NULL: a table of batches would be one more page for each
	// commit to write.
	// header is eventlog.AppendHeader; value is NULL unless it is a put;
	// revision repeats the header's main revision, for people.
	//
	// kept has one row: floor is the highest seq that compaction deleted,
	// deleted the number of records deleted, and revision the newest main
	// revision when that was. Above floor seqs are dense, and in all there
	// are (newest seq - deleted) rows: a lost row cannot go unnoticed.
	statements(`CREATE TABLE log (
		seq      INTEGER PRIMARY KEY,
		revision INTEGER NOT NULL,
		batch    BLOB,
		header   BLOB NOT NULL,
		key      BLOB,
		value    BLOB
	);
	CREATE TABLE kept (
		id       INTEGER PRIMARY KEY CHECK (id = 1),
		floor    INTEGER NOT NULL,
		deleted  INTEGER NOT NULL,
		revision INTEGER NOT NULL
	);
	INSERT INTO kept VALUES (1, 0, 0, 0);
	CREATE VIEW live AS
		SELECT CAST(key AS TEXT) AS key, revision, value
		FROM log
		WHERE seq IN (SELECT max(seq) FROM log WHERE key IS NOT NULL GROUP BY key)
			AND value IS NOT NULL
		ORDER BY log.key;`),
	// Damage to kept would pass for a compaction, or for revisions.
	func(c *conn) error {
		if err := c.exec("ALTER TABLE kept ADD COLUMN crc INTEGER NOT NULL DEFAULT 0"); err != nil {
			return err
		}
		v, err := c.ints(selectKept)
		if err != nil {
			return err
		}
		return writeKept(c, kept{v[0], v[1], v[2]})
	},
}

// statements are a migration that needs nothing but SQL.
func statements(sql string) func(*conn) error {
	return func(c *conn) error { return c.exec(sql) }
}

// migrate runs the steps that the file lacks, in one transaction.
func migrate(c *conn, steps []func(*conn) error) error {
	version, err := c.int("PRAGMA user_version")
	if err != nil {
		return err
	}
	if version > int64(len(steps)) {
		return fmt.Errorf("%w: it has schema version %d, this keelson knows up to %d", ErrNewer, version, len(steps))
	}
	if version == int64(len(steps)) {
		return nil
	}
	if err := c.exec("BEGIN IMMEDIATE"); err != nil {
		return err
	}
	for i, step := range steps[version:] {
		if err := step(c); err != nil {
			return errors.Join(fmt.Errorf("migrate from schema version %d: %w", version+int64(i), err), c.exec("ROLLBACK"))
		}
	}
	// A PRAGMA takes no parameter.
	if err := c.exec(fmt.Sprintf("PRAGMA user_version=%d", len(steps))); err != nil {
		return errors.Join(err, c.exec("ROLLBACK"))
	}
	return c.exec("COMMIT")
}

// partSuffix is what the name of a database ends with while it is made. It is
// not data: whoever comes next and may write removes it.
const partSuffix = ".new"

// cutOff is in the place of a database while another one takes it: see
// Importer.Finish.
const cutOff = "The import or restore into this directory was cut off. Run it again.\n"

// begun is in the place of a database that is imported where there was none: a
// directory without one is taken for new.
const begun = "The import or restore into this directory has not ended. Run it again.\n"

// create makes the database in a file of another name and renames it when it
// is complete and durable, so that a file at path is always a whole database.
func create(path string) error {
	part := path + partSuffix
	if err := createPart(part); err != nil {
		return err
	}
	if err := durable.Sync(part); err != nil {
		return err
	}
	if err := os.Rename(part, path); err != nil {
		return err
	}
	return durable.Sync(filepath.Dir(path))
}

// createPart makes an empty database, which is not durable yet.
func createPart(part string) error {
	if err := removeDatabase(part); err != nil {
		return err
	}
	f, err := os.OpenFile(part, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	c, err := openConn(part,
		fmt.Sprintf("PRAGMA page_size=%d", pageSize),
		"PRAGMA auto_vacuum=INCREMENTAL",
		"PRAGMA journal_mode=WAL",
		"PRAGMA synchronous=FULL",
		fmt.Sprintf("PRAGMA application_id=%d", applicationID),
	)
	if err != nil {
		return err
	}
	err = migrate(c, migrations)
	if err == nil {
		err = c.exec("PRAGMA wal_checkpoint(TRUNCATE)")
	}
	return errors.Join(err, c.close())
}

// removeDatabase removes the files of the database at path that there are.
func removeDatabase(path string) error {
	return remove(path, path+"-wal", path+"-shm", path+"-journal")
}

// remove removes the files that there are.
func remove(paths ...string) error {
	for _, path := range paths {
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

// IsDatabase reports whether the file at path is a database of a Log, of whatever
// version.
func IsDatabase(path string) bool {
	err := checkFile(path)
	return err == nil || errors.Is(err, ErrNewer)
}

// checkFile reads the header of the file at path, before SQLite touches it. A
// file that is not there is fs.ErrNotExist.
func checkFile(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	var header [100]byte
	n, err := io.ReadFull(f, header[:])
	switch {
	case n == 0 && errors.Is(err, io.EOF):
		return fmt.Errorf("%w: the file is empty", eventlog.ErrCorrupt)
	case err != nil && !errors.Is(err, io.ErrUnexpectedEOF):
		return err
	case string(header[:n]) == cutOff, string(header[:n]) == begun:
		return fmt.Errorf("%w: an import or restore into this directory was cut off: run it again", eventlog.ErrCorrupt)
	case n < len(magic) || string(header[:len(magic)]) != magic:
		return fmt.Errorf("%w: it is not an SQLite file", ErrForeign)
	case n < len(header):
		return fmt.Errorf("%w: the file ends after %d bytes", eventlog.ErrCorrupt, n)
	}
	// Offsets 60 and 68 of SQLite's file format.
	if id := binary.BigEndian.Uint32(header[68:]); id != applicationID {
		return fmt.Errorf("%w: its application_id is %#x, not %#x", ErrForeign, id, applicationID)
	}
	if version := binary.BigEndian.Uint32(header[60:]); int64(version) > int64(len(migrations)) {
		return fmt.Errorf("%w: it has schema version %d, this keelson knows up to %d", ErrNewer, version, len(migrations))
	}
	return nil
}
