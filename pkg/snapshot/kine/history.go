package kine

import (
	"bytes"
	"fmt"
	"strconv"

	"github.com/keelson-io/keelson/pkg/eventlog"
)

// Names that kine uses itself.
const (
	compactKey    = "compact_rev_key"           // kine's own row, or to clients the key below
	apiCompactKey = "compact_rev_key_apiserver" // what kube-apiserver writes to compact_rev_key
)

// row is a row of the table, its value left out where it is not needed.
type row struct {
	id       int64
	name     []byte
	created  bool
	deleted  bool
	create   int64 // create_revision: 0 for a creation, and for deletions
	previous int64 // prev_revision: of compactKey, the compact revision
	lease    int64
	value    []byte
}

// fills reports that the row only stands for an id that was never used.
func (r *row) fills() bool {
	return r.deleted && !r.created && r.previous == 0 && string(r.name) == fmt.Sprint("gap-", r.id)
}

// internal reports that the row is none of a client's.
func (r *row) internal() bool { return string(r.name) == compactKey || r.fills() }

// version is what the next version of a key needs to know of the one before.
type version struct {
	create, version int64
	alive           bool
}

// history turns rows, in order of id, into records.
type history struct {
	record eventlog.Record // made anew for each row
	last   map[string]version
}

func newHistory() *history { return &history{last: make(map[string]version)} }

// next returns the record of a row, valid until the next call, or nil if it
// has none: a deletion of what was deleted already.
func (h *history) next(r *row) *eventlog.Record {
	prev, known := h.last[string(r.name)]
	h.record = eventlog.Record{Revision: eventlog.Revision{Main: r.id}, Key: r.name}
	if r.deleted {
		h.last[string(r.name)] = version{}
		h.record.Kind = eventlog.KindDelete
		h.record.Key = clientName(r.name)
		if known && !prev.alive {
			return nil
		}
		return &h.record
	}
	v := version{alive: true}
	switch {
	case r.created, known && !prev.alive:
		v.create, v.version = r.id, 1
	case known:
		v.create, v.version = prev.create, prev.version+1
	default:
		v.create, v.version = r.create, 2
	}
	if v.create < 1 || v.create > r.id {
		v.create = r.id
	}
	h.last[string(r.name)] = v
	h.record.Kind = eventlog.KindPut
	h.record.CreateRevision, h.record.Version, h.record.Lease = v.create, v.version, max(r.lease, 0)
	h.record.Key, h.record.Value = clientName(r.name), r.value
	if string(r.name) == apiCompactKey {
		h.record.Version, h.record.Value = splitVersion(r.value, v.version)
	}
	return &h.record
}

// clientName is the name by which a client knows the key.
func clientName(name []byte) []byte {
	if string(name) == apiCompactKey {
		return []byte(compactKey)
	}
	return name
}

// splitVersion takes "version|value" apart. Old releases of kine wrote the
// version alone; the value that they gave clients instead was 0.
func splitVersion(stored []byte, counted int64) (int64, []byte) {
	text, value, ok := bytes.Cut(stored, []byte("|"))
	if !ok {
		value = []byte("0")
	}
	n, err := strconv.ParseInt(string(text), 10, 64)
	if err != nil || n < 1 {
		return counted, value
	}
	return n, value
}
