// Package check reads the whole data of a driver and reports what is wrong with
// it, without changing anything:
//
//	rows ─▶ records    checksums, order, what is missing above the floor
//	          ─▶ index   keys, leases and alarms as a server would have them
//	counters ─▶ what the rows say of themselves, against the rows
//	files    ─▶ SQLite's own checks, its WAL, the Raft log of a node
//
// Where a server stops at the first thing that is wrong, this goes on, also
// behind what cannot be read.
package check

import (
	"context"
	"fmt"
)

// Kind says what sort of damage a finding is of.
type Kind string

// The kinds of findings.
const (
	KindFile     Kind = "file"     // SQLite finds the file damaged
	KindWAL      Kind = "wal"      // SQLite's write-ahead log
	KindRaft     Kind = "raft"     // the Raft log of a node of a cluster
	KindRead     Kind = "unread"   // rows that cannot be read
	KindMissing  Kind = "missing"  // rows that are not there
	KindHeader   Kind = "header"   // checksum or form of a record's header and key
	KindValue    Kind = "value"    // checksum of a value
	KindBatch    Kind = "batch"    // the id of a batch
	KindColumn   Kind = "column"   // a column that repeats the header
	KindOrder    Kind = "order"    // positions and revisions
	KindCounters Kind = "counters" // what is counted apart from the rows
	KindIndex    Kind = "index"    // versions of keys that do not follow each other
	KindLease    Kind = "lease"
	KindAlarm    Kind = "alarm"
	KindCompact  Kind = "compaction"
)

// Finding is one thing that is wrong.
type Finding struct {
	Kind    Kind   `json:"kind"`
	Where   string `json:"where"`
	Problem string `json:"problem"`
	Advice  string `json:"advice"`
}

// Report is what a check has found.
type Report struct {
	Driver    string `json:"driver"`
	Records   int64  `json:"records"`
	Keys      int64  `json:"keys"` // that are alive
	Leases    int64  `json:"leases"`
	Revision  int64  `json:"revision"`
	Compacted int64  `json:"compacted"` // 0 before the first compaction

	Findings []Finding `json:"findings"`
	// More counts, by kind, the findings that are not in Findings: there are at
	// most MaxFindings of a kind.
	More map[Kind]int `json:"more,omitempty"`
	// Notes are no damage.
	Notes []string `json:"notes,omitempty"`
}

// MaxFindings is how many findings of a kind a report has.
const MaxFindings = 20

// Clean reports whether nothing is wrong.
func (r *Report) Clean() bool { return len(r.Findings) == 0 }

// Count is how many findings there are, those that are left out included.
func (r *Report) Count() int {
	n := len(r.Findings)
	for _, more := range r.More {
		n += more
	}
	return n
}

// Progress is told how many of how many records are read.
type Progress func(records, of int64)

// unknown is the seq of the newest row where that cannot be read: so many
// records no log has.
const unknown = 1 << 53

// pageRows are read at a time.
const pageRows = 1000

// checker collects the findings of one check.
type checker struct {
	Report
	cluster  bool // the data is a node's
	progress Progress
	of       int64
}

func newChecker(driver string, progress Progress) *checker {
	if progress == nil {
		progress = func(int64, int64) {}
	}
	return &checker{Report: Report{Driver: driver, Findings: []Finding{}}, progress: progress}
}

// found adds a finding.
func (c *checker) found(kind Kind, where, format string, args ...any) {
	n := 0
	for i := range c.Findings {
		if c.Findings[i].Kind == kind {
			n++
		}
	}
	if n >= MaxFindings {
		if c.More == nil {
			c.More = make(map[Kind]int)
		}
		c.More[kind]++
		return
	}
	c.Findings = append(c.Findings, Finding{Kind: kind, Where: where, Problem: fmt.Sprintf(format, args...), Advice: c.advice(kind)})
}

func (c *checker) note(format string, args ...any) {
	c.Notes = append(c.Notes, fmt.Sprintf(format, args...))
}

// advice is what to do about a finding.
func (c *checker) advice(kind Kind) string {
	if c.cluster {
		switch kind {
		case KindColumn, KindAlarm:
		default:
			return "remove this node from the cluster and add it again with an empty data directory: it gets the data of the others; if they have the same, restore a backup"
		}
	}
	switch kind {
	case KindColumn:
		return "a server does not read it, or only to find rows: save and restore the data to write it anew"
	case KindBatch:
		return "servers that follow the log stop there: save and restore the data to write it anew"
	case KindValue:
		return "reading the key fails: write or delete it, or restore a backup"
	case KindLease:
		return "a key without its lease never expires: delete it, or restore a backup"
	case KindAlarm:
		return "etcdctl alarm disarm"
	case KindWAL:
		return "a server does not start: restore a backup, or cut the log off there as said, which loses what was written after it"
	}
	return "restore a backup"
}

// source is a driver's rows; R is what they are there.
type source[R any] interface {
	// Rows calls fn with up to limit rows, in order, from seq on. It may fail
	// after some of them.
	Rows(ctx context.Context, from int64, limit int, fn func(*R) error) error
}

// scan calls fn with every row up to seq newest that can be read, and unread
// with the ranges between them that cannot. seq is that of a row; damage knows
// the errors that say that something cannot be read.
func scan[R any](ctx context.Context, s source[R], newest int64, seq func(*R) int64, damage func(error) bool, fn func(*R), unread func(from, to int64)) error {
	for next := int64(1); next <= newest; {
		before := next
		err := s.Rows(ctx, next, pageRows, func(r *R) error {
			if seq(r) >= next && seq(r) <= newest { // else the file's order is damaged, which is found elsewhere
				next = seq(r) + 1
				fn(r)
			}
			return nil
		})
		switch {
		case err == nil && next == before:
			return nil
		case err == nil || damage(err) && next > before:
			continue
		case !damage(err):
			return err
		}
		if next, err = skip(ctx, s, before, newest, damage); err != nil {
			return err
		}
		unread(before, next-1)
	}
	return nil
}

// skip returns the first seq after from, where nothing can be read, from which
// on a row can be; newest+1 if there is none.
func skip[R any](ctx context.Context, s source[R], from, newest int64, damage func(error) bool) (int64, error) {
	readable := func(at int64) (bool, error) {
		err := s.Rows(ctx, at, 1, func(*R) error { return nil })
		if err != nil && !damage(err) {
			return false, err
		}
		return err == nil, nil
	}
	broken, step := from, int64(1)
	for {
		at := from + step
		if at > newest {
			return newest + 1, nil
		}
		ok, err := readable(at)
		if err != nil {
			return 0, err
		}
		if ok {
			break
		}
		broken, step = at, 2*step
	}
	for good := from + step; ; {
		if good-broken <= 1 {
			return good, nil
		}
		middle := broken + (good-broken)/2
		ok, err := readable(middle)
		if err != nil {
			return 0, err
		}
		if ok {
			good = middle
		} else {
			broken = middle
		}
	}
}
