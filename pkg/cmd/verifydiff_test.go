package cmd

import (
	"strings"
	"testing"

	"github.com/keelson-io/keelson/pkg/eventlog"
	"github.com/keelson-io/keelson/pkg/snapshot"
)

// contentsOf is what records make.
func contentsOf(state snapshot.State, records ...eventlog.Record) *contents {
	c := newContents(state)
	for i := range records {
		c.add(&records[i])
	}
	return c
}

func putOf(main, create, version, lease int64, key, value string) eventlog.Record {
	return eventlog.Record{
		Kind: eventlog.KindPut, Revision: eventlog.Revision{Main: main}, CreateRevision: create, Version: version, Lease: lease,
		Key: []byte(key), Value: []byte(value),
	}
}

func TestCompareContents(t *testing.T) {
	state := snapshot.State{Revision: 9, Compacted: 3, Leases: []snapshot.Lease{{ID: 0x10, TTL: 60, Remaining: 5}}}
	tombstone := eventlog.Record{Kind: eventlog.KindDelete, Revision: eventlog.Revision{Main: 5}, Key: []byte("gone")}
	first, second := putOf(4, 4, 1, 0, "gone", ""), putOf(6, 2, 3, 0x10, "a", "x")
	a := contentsOf(state, first, tombstone, second)
	for _, tt := range []struct {
		name         string
		b            *contents
		want, values string // what is printed; with --values
	}{
		{"the same", contentsOf(state, first, tombstone, second), "", ""},
		{"another order, and time left", contentsOf(snapshot.State{Revision: 9, Compacted: 3, Leases: []snapshot.Lease{{ID: 0x10, TTL: 60}}}, second, first, tombstone), "", ""},
		{"revision", contentsOf(snapshot.State{Revision: 10, Compacted: 4, Leases: state.Leases}, first, tombstone, second), "revision: 9, 10|compact revision: 3, 4", ""},
		{"leases", contentsOf(snapshot.State{Revision: 9, Compacted: 3, Leases: []snapshot.Lease{{ID: 0x11, TTL: 60}}}, first, tombstone, second),
			"lease 10: only in the first|lease 11: only in the second", "lease 10: only in the first|lease 11: only in the second"},
		{"TTL", contentsOf(snapshot.State{Revision: 9, Compacted: 3, Leases: []snapshot.Lease{{ID: 0x10, TTL: 61}}}, first, tombstone, second), "lease 10: TTL 60, 61", "lease 10: TTL 60, 61"},
		{"history", contentsOf(state, tombstone, second), "the history of the keys: 3 versions, 2, and not the same ones", ""},
		{"history of as many", contentsOf(state, putOf(4, 4, 1, 0, "gone", "y"), tombstone, second), "the history of the keys: 3 versions, 3, and not the same ones", ""},
		{"keys", contentsOf(state, first, putOf(6, 6, 1, 0, "b", "")), `"a": only in the first|"b": only in the second|"gone": only in the second`,
			`"a": only in the first|"b": only in the second|"gone": only in the second`},
		{"value", contentsOf(state, first, tombstone, putOf(6, 2, 3, 0x10, "a", "yz")), `"a": value (1, 2 bytes)`, `"a": value (1, 2 bytes)`},
		{"all of a key", contentsOf(state, first, tombstone, putOf(7, 3, 4, 0, "a", "x")), `"a": lease 10, 0; create revision 2, 3; mod revision 6, 7; version 3, 4`, `"a": lease 10, 0`},
	} {
		for revisions, want := range map[bool]string{true: tt.want, false: tt.values} {
			var got []string
			compareContents(a, tt.b, revisions, func(text string) { got = append(got, text) })
			if strings.Join(got, "|") != want {
				t.Errorf("%s: %q, want %q", tt.name, got, want)
			}
		}
	}
}
