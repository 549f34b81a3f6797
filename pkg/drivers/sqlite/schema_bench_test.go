package sqlite

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/keelson-io/keelson/pkg/eventlog"
)

// The variants of the table that were measured; the figures and the choice
// are in the package comment. Run with
//
//	go test -run - -bench Schema ./pkg/drivers/sqlite
type variant struct {
	name   string
	page   int
	vacuum string
	schema []string
	second string // takes seq and value, when values have a table of their own
	multi  int    // rows to an INSERT
	load   string
}

const (
	plainTable = "CREATE TABLE log (seq INTEGER PRIMARY KEY, revision INTEGER, batch BLOB, header BLOB NOT NULL, key BLOB, value BLOB)"
	plainLoad  = "SELECT seq, header, key FROM log WHERE seq >= ? AND seq < ? ORDER BY seq"
)

func variants() []variant {
	var vs []variant
	for _, page := range []int{4096, 8192, 16384} {
		for _, multi := range []int{1, 16, 64} {
			vs = append(vs, variant{name: "plain", page: page, vacuum: "INCREMENTAL", multi: multi, schema: []string{plainTable}, load: plainLoad})
		}
	}
	return append(vs,
		variant{name: "plain-novacuum", page: 4096, vacuum: "NONE", multi: 16, schema: []string{plainTable}, load: plainLoad},
		variant{name: "two-tables", page: 4096, vacuum: "INCREMENTAL", multi: 1, schema: []string{
			"CREATE TABLE log (seq INTEGER PRIMARY KEY, revision INTEGER, batch BLOB, header BLOB NOT NULL, key BLOB)",
			"CREATE TABLE value (seq INTEGER PRIMARY KEY, value BLOB)",
		}, second: "INSERT INTO value VALUES (?, ?)", load: plainLoad},
		variant{name: "without-rowid", page: 4096, vacuum: "INCREMENTAL", multi: 16, schema: []string{plainTable + " WITHOUT ROWID"}, load: plainLoad},
		variant{name: "key-index", page: 4096, vacuum: "INCREMENTAL", multi: 16, schema: []string{plainTable, "CREATE INDEX log_key ON log (key, seq)"}, load: plainLoad},
	)
}

func (v variant) String() string {
	return fmt.Sprintf("%s/page=%d/rows=%d", v.name, v.page, v.multi)
}

func (v variant) open(b *testing.B) (*conn, string) {
	path := filepath.Join(b.TempDir(), "bench.db")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		b.Fatal(err)
	}
	c, err := openConn(path, append([]string{
		fmt.Sprintf("PRAGMA page_size=%d", v.page), "PRAGMA auto_vacuum=" + v.vacuum,
		"PRAGMA journal_mode=WAL", "PRAGMA synchronous=FULL", "PRAGMA wal_autocheckpoint=0",
	}, v.schema...)...)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = c.close() })
	return c, path
}

// append inserts n rows after seq in one transaction.
func (v variant) append(b *testing.B, c *conn, seq int64, n int, value []byte) {
	columns := 6
	if v.second != "" {
		columns = 5
	}
	row := "(" + strings.Repeat("?,", columns-1) + "?)"
	single := "INSERT INTO log VALUES " + row
	multi := "INSERT INTO log VALUES " + strings.Repeat(row+",", v.multi-1) + row
	must := func(err error) {
		if err != nil {
			b.Fatal(err)
		}
	}
	must(c.exec("BEGIN IMMEDIATE"))
	var args []any
	for i := 0; i < n; {
		sql, rows := single, 1
		if n-i >= v.multi {
			sql, rows = multi, v.multi
		}
		args = args[:0]
		for range rows {
			seq++
			r := eventlog.Record{Seq: seq, Position: eventlog.Position(seq), Kind: eventlog.KindPut, Revision: eventlog.Revision{Main: seq},
				Key: fmt.Appendf(nil, "/registry/pods/namespace-%03d/pod-%08d", seq%100, seq), Value: value, CreateRevision: seq, Version: 1}
			var id any
			if i == 0 {
				id = make([]byte, 16)
			}
			args = append(args, seq, seq, id, eventlog.AppendHeader(nil, &r), r.Key, r.Value)
			if v.second != "" {
				args = args[:columns]
				must(c.exec(v.second, seq, r.Value))
			}
		}
		must(c.exec(sql, args...))
		i += rows
	}
	must(c.exec("COMMIT"))
}

func BenchmarkSchemaInsert(b *testing.B) {
	for _, v := range variants() {
		for _, n := range []int{1, 100, 1000} {
			b.Run(fmt.Sprintf("%v/batch=%d", v, n), func(b *testing.B) {
				c, path := v.open(b)
				value := make([]byte, 1024)
				var seq, written, wal int64
				for b.Loop() {
					v.append(b, c, seq, n, value)
					seq += int64(n)
					info, err := os.Stat(path + "-wal")
					if err != nil {
						b.Fatal(err)
					}
					written += max(info.Size()-wal, 0)
					if wal = info.Size(); wal > 16<<20 {
						if err := c.exec("PRAGMA wal_checkpoint(TRUNCATE)"); err != nil {
							b.Fatal(err)
						}
						wal = 0
					}
				}
				b.ReportMetric(float64(seq)/b.Elapsed().Seconds(), "rows/s")
				b.ReportMetric(float64(written)/float64(b.N), "walbytes/commit")
			})
		}
	}
}

func BenchmarkSchemaLoad(b *testing.B) {
	for _, v := range variants() {
		if v.multi != 16 && v.second == "" {
			continue
		}
		b.Run(fmt.Sprintf("%v/100k", v), func(b *testing.B) {
			c, _ := v.open(b)
			for seq := int64(0); seq < 100_000; seq += 1000 {
				v.append(b, c, seq, 1000, make([]byte, 1024))
				if seq%20_000 == 0 {
					_ = c.exec("PRAGMA wal_checkpoint(TRUNCATE)")
				}
			}
			_ = c.exec("PRAGMA wal_checkpoint(TRUNCATE)")
			for b.Loop() {
				rows := 0
				err := c.query(func(row) error { rows++; return nil }, v.load, int64(0), int64(1<<60))
				if err != nil || rows != 100_000 {
					b.Fatal(rows, err)
				}
			}
		})
	}
}
