package sqlite

import (
	"context"
	"database/sql/driver"
	"errors"
	"fmt"
	"io"
	"net/url"

	modernc "modernc.org/sqlite"

	"github.com/keelson-io/keelson/pkg/eventlog"
)

// conn is one SQLite connection, spoken to through database/sql/driver: the
// pool, the conversions and the reflection of database/sql would cost more
// than an insert does. It serves one goroutine at a time; its owner holds it.
type conn struct {
	raw   driver.Conn
	stmts map[string]*stmt // by SQL text, prepared at first use
}

// row is one row of a result: int64, float64, string, []byte or nil. An empty
// blob is a []byte that is nil; NULL is nil itself.
type row = []driver.Value

// stmt is a prepared statement with its arguments, which are reused.
type stmt struct {
	raw  driver.Stmt
	args []driver.NamedValue
}

// openConn opens the database file at path, which must exist, and runs the
// statements of setup.
func openConn(path string, setup ...string) (*conn, error) {
	return openMode("rw", path, setup...)
}

// openMode is openConn with SQLite's mode, rw or ro.
func openMode(mode, path string, setup ...string) (*conn, error) {
	raw, err := new(modernc.Driver).Open(uriOf(mode, path))
	if err != nil {
		return nil, err
	}
	c := &conn{raw: raw, stmts: make(map[string]*stmt)}
	for _, sql := range setup {
		if err := c.exec(sql); err != nil {
			return nil, errors.Join(fmt.Errorf("%s: %w", sql, err), c.close())
		}
	}
	return c, nil
}

// uriOf is what SQLite opens the database file at path by.
func uriOf(mode, path string) string {
	uri := url.URL{Scheme: "file", Path: path, RawQuery: "mode=" + mode + "&_error_rc=1"}
	return uri.String()
}

func (c *conn) close() error {
	var errs []error
	for _, s := range c.stmts {
		errs = append(errs, s.raw.Close())
	}
	c.stmts = nil
	return errors.Join(append(errs, c.raw.Close())...)
}

// prepare returns the prepared statement of sql, with args as its arguments.
func (c *conn) prepare(sql string, args []any) (*stmt, error) {
	s := c.stmts[sql]
	if s == nil {
		raw, err := c.raw.Prepare(sql)
		if err != nil {
			return nil, err
		}
		s = &stmt{raw: raw}
		c.stmts[sql] = s
	}
	for len(s.args) < len(args) {
		s.args = append(s.args, driver.NamedValue{Ordinal: len(s.args) + 1})
	}
	s.args = s.args[:len(args)]
	for i, arg := range args {
		s.args[i].Value = arg
	}
	return s, nil
}

// exec runs sql, prepared once, with args: int64, string, []byte (nil is
// NULL) or nil.
func (c *conn) exec(sql string, args ...any) error {
	_, err := c.execChanges(sql, args...)
	return err
}

// execChanges is exec; it returns the number of rows changed.
func (c *conn) execChanges(sql string, args ...any) (int64, error) {
	s, err := c.prepare(sql, args)
	if err != nil {
		return 0, err
	}
	// The driver has both interfaces; a context without Done costs nothing.
	res, err := s.raw.(driver.StmtExecContext).ExecContext(context.Background(), s.args)
	if err != nil {
		return 0, err
	}
	return res.RowsAffected()
}

// query runs sql, prepared once, and calls fn for each row. The row is fn's
// until it returns; blobs in it are fn's to keep. An error of fn ends the
// query and is returned.
func (c *conn) query(fn func(row) error, sql string, args ...any) error {
	return c.queryContext(context.Background(), fn, sql, args...)
}

// queryContext is query, until ctx ends.
func (c *conn) queryContext(ctx context.Context, fn func(row) error, sql string, args ...any) (err error) {
	s, err := c.prepare(sql, args)
	if err != nil {
		return err
	}
	rows, err := s.raw.(driver.StmtQueryContext).QueryContext(ctx, s.args)
	if err != nil {
		return err
	}
	defer func() {
		if closeErr := rows.Close(); err == nil {
			err = closeErr
		}
	}()
	r := make(row, len(rows.Columns()))
	for {
		switch err := rows.Next(r); {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return err
		}
		if err := fn(r); err != nil {
			return err
		}
	}
}

// ints runs a query of integers that has one row unless the file is damaged.
func (c *conn) ints(sql string, args ...any) (out []int64, err error) {
	err = c.query(func(r row) error {
		out = out[:0]
		for _, v := range r {
			n, _ := v.(int64) // NULL, as of max() over nothing, is 0
			out = append(out, n)
		}
		return nil
	}, sql, args...)
	if err == nil && len(out) == 0 {
		err = fmt.Errorf("%w: no row: %s", eventlog.ErrCorrupt, sql)
	}
	return out, err
}

// int is ints for a single one.
func (c *conn) int(sql string, args ...any) (int64, error) {
	out, err := c.ints(sql, args...)
	if err != nil {
		return 0, err
	}
	return out[0], nil
}
