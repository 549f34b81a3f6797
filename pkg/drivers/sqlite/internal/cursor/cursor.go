// Package cursor reads rows of SQLite where they lie. The driver for Go copies
// every value into memory of its own; for a whole database that is more work
// than the reading, and garbage that lets Go's heap grow to twice what lives
// in it.
package cursor

import (
	"fmt"
	"unsafe"

	"modernc.org/libc"
	sqlite3 "modernc.org/sqlite/lib"
)

// busyTimeout is how long a lock is waited for, in milliseconds.
const busyTimeout = 5000

// Cursor is a query on a connection of its own. It serves one goroutine at a
// time.
type Cursor struct {
	tls      *libc.TLS
	db, stmt uintptr // C's
}

// Error is one of SQLite's.
type Error struct {
	code int
	text string
}

// Error implements error.
func (e *Error) Error() string { return e.text }

// Code returns SQLite's number of the error.
func (e *Error) Code() int { return e.code }

// Open opens the database that a URI names, to read it, and prepares query
// after the statements of setup.
func Open(uri, query string, setup ...string) (*Cursor, error) {
	c := &Cursor{tls: libc.NewTLS()}
	err := c.open(uri)
	for _, sql := range setup {
		if err == nil {
			err = c.run(sql)
		}
	}
	if err == nil {
		c.stmt, err = c.prepare(query)
	}
	if err != nil {
		c.Close()
		return nil, err
	}
	return c, nil
}

func (c *Cursor) open(uri string) error {
	name, err := libc.CString(uri)
	if err != nil {
		return err
	}
	defer libc.Xfree(c.tls, name)
	out := c.tls.Alloc(pointerSize)
	defer c.tls.Free(pointerSize)
	const flags = sqlite3.SQLITE_OPEN_READONLY | sqlite3.SQLITE_OPEN_NOMUTEX | sqlite3.SQLITE_OPEN_URI
	code := sqlite3.Xsqlite3_open_v2(c.tls, name, out, flags, 0)
	c.db = *(*uintptr)(ptr(out)) // after most errors, too
	if code != sqlite3.SQLITE_OK {
		return c.fail(code)
	}
	sqlite3.Xsqlite3_extended_result_codes(c.tls, c.db, 1)
	sqlite3.Xsqlite3_busy_timeout(c.tls, c.db, busyTimeout)
	return nil
}

func (c *Cursor) prepare(sql string) (stmt uintptr, err error) {
	text, err := libc.CString(sql)
	if err != nil {
		return 0, err
	}
	defer libc.Xfree(c.tls, text)
	out := c.tls.Alloc(pointerSize)
	defer c.tls.Free(pointerSize)
	if code := sqlite3.Xsqlite3_prepare_v2(c.tls, c.db, text, -1, out, 0); code != sqlite3.SQLITE_OK {
		return 0, c.fail(code)
	}
	return *(*uintptr)(ptr(out)), nil
}

// run runs a statement whose result does not matter.
func (c *Cursor) run(sql string) error {
	stmt, err := c.prepare(sql)
	if err != nil {
		return err
	}
	defer sqlite3.Xsqlite3_finalize(c.tls, stmt)
	for {
		switch code := sqlite3.Xsqlite3_step(c.tls, stmt); code {
		case sqlite3.SQLITE_ROW:
		case sqlite3.SQLITE_DONE:
			return nil
		default:
			return c.fail(code)
		}
	}
}

// Each runs the query with args and calls fn for each row, as long as it returns
// true. All rows are of one state of the database, from which checkpoints are
// held up until Each returns.
func (c *Cursor) Each(fn func() (more bool, err error), args ...int64) error {
	defer sqlite3.Xsqlite3_reset(c.tls, c.stmt) // repeats what step has said
	for i, arg := range args {
		if code := sqlite3.Xsqlite3_bind_int64(c.tls, c.stmt, int32(i+1), arg); code != sqlite3.SQLITE_OK {
			return c.fail(code)
		}
	}
	for {
		switch code := sqlite3.Xsqlite3_step(c.tls, c.stmt); code {
		case sqlite3.SQLITE_ROW:
			if more, err := fn(); err != nil || !more {
				return err
			}
		case sqlite3.SQLITE_DONE:
			return nil
		default:
			return c.fail(code)
		}
	}
}

// Int returns a column of the row, counted from 0.
func (c *Cursor) Int(column int) int64 {
	return sqlite3.Xsqlite3_column_int64(c.tls, c.stmt, int32(column))
}

// Blob returns a column of the row: memory of SQLite's, as it is until the
// function that Each has called returns. What is no blob is nil, as NULL is; an
// empty blob is not.
func (c *Cursor) Blob(column int) []byte {
	if sqlite3.Xsqlite3_column_type(c.tls, c.stmt, int32(column)) != sqlite3.SQLITE_BLOB {
		return nil
	}
	start := sqlite3.Xsqlite3_column_blob(c.tls, c.stmt, int32(column))
	size := sqlite3.Xsqlite3_column_bytes(c.tls, c.stmt, int32(column))
	switch {
	case size == 0:
		return []byte{}
	case start == 0: // there was no memory for it
		return nil
	}
	return unsafe.Slice((*byte)(ptr(start)), int(size))
}

// Close closes the connection.
func (c *Cursor) Close() {
	// Neither can fail: nothing is written, and nothing else uses them.
	sqlite3.Xsqlite3_finalize(c.tls, c.stmt)
	sqlite3.Xsqlite3_close_v2(c.tls, c.db)
	c.tls.Close()
}

// fail is the error of a call that returned code.
func (c *Cursor) fail(code int32) error {
	text := libc.GoString(sqlite3.Xsqlite3_errstr(c.tls, code))
	if c.db != 0 {
		if more := libc.GoString(sqlite3.Xsqlite3_errmsg(c.tls, c.db)); more != text {
			text += ": " + more
		}
	}
	return &Error{code: int(code), text: fmt.Sprintf("%s (%d)", text, code)}
}

const pointerSize = int(unsafe.Sizeof(uintptr(0)))

// ptr makes a pointer of one of C's. They are uintptrs, and point to memory that
// Go's collector does not know.
func ptr(p uintptr) unsafe.Pointer { return *(*unsafe.Pointer)(unsafe.Pointer(&p)) }
