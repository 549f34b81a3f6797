package cmd

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/keelson-io/keelson/pkg/eventlog"
	"github.com/keelson-io/keelson/pkg/snapshot"
)

// digest stands for a value.
type digest [16]byte

// held is the newest version of a key.
type held struct {
	create, mod, version, lease int64
	size                        int
	value                       digest
}

// contents is what is compared of a source.
type contents struct {
	state    snapshot.State
	keys     map[string]held
	versions int64     // tombstones among them
	history  [4]uint64 // of all versions, in whatever order they came within a revision
	bytes    int64
}

func newContents(state snapshot.State) *contents {
	return &contents{state: state, keys: make(map[string]held)}
}

// readContents reads a source to its end. Values are kept as digests.
func readContents(ctx context.Context, src snapshot.Source, report func(snapshot.Progress)) (*contents, error) {
	c := newContents(src.State())
	err := src.Records(ctx, func(r *eventlog.Record) error {
		c.add(r)
		if c.versions%1000 == 0 {
			report(snapshot.Progress{Records: c.versions, Bytes: c.bytes})
			return context.Cause(ctx)
		}
		return nil
	})
	return c, err
}

func (c *contents) add(r *eventlog.Record) {
	sum := sha256.Sum256(r.Value)
	h := held{r.CreateRevision, r.Revision.Main, r.Version, r.Lease, len(r.Value), digest(sum[:])}
	if r.Kind == eventlog.KindDelete {
		delete(c.keys, string(r.Key))
	} else {
		c.keys[string(r.Key)] = h
	}
	c.versions++
	c.bytes += int64(len(r.Key) + len(r.Value))
	text := fmt.Appendf(nil, "%d %d %d %d %d %x %s", r.Kind, h.create, h.mod, h.version, h.lease, h.value, r.Key)
	sum = sha256.Sum256(text)
	for i := range c.history {
		c.history[i] += binary.LittleEndian.Uint64(sum[8*i:])
	}
}

// String counts what there is.
func (c *contents) String() string {
	return fmt.Sprintf("revision %d, compacted %d: %d keys, %d versions, %d leases, %s",
		c.state.Revision, c.state.Compacted, len(c.keys), c.versions, len(c.state.Leases), formatBytes(c.bytes))
}

// compareContents calls differ with each difference, in order of keys. Without
// revisions, only keys, values and leases count.
func compareContents(a, b *contents, revisions bool, differ func(string)) {
	number := func(what string, a, b int64) {
		if a != b {
			differ(fmt.Sprintf("%s: %d, %d", what, a, b))
		}
	}
	if revisions {
		number("revision", a.state.Revision, b.state.Revision)
		number("compact revision", a.state.Compacted, b.state.Compacted)
	}
	compareLeases(a.state.Leases, b.state.Leases, differ)
	keys := 0
	count := func(text string) { keys++; differ(text) }
	all := maps.Clone(a.keys)
	maps.Copy(all, b.keys)
	for _, key := range slices.Sorted(maps.Keys(all)) {
		x, inA := a.keys[key]
		y, inB := b.keys[key]
		switch {
		case !inB:
			count(fmt.Sprintf("%q: only in the first", key))
		case !inA:
			count(fmt.Sprintf("%q: only in the second", key))
		default:
			if text := x.differs(y, revisions); text != "" {
				count(fmt.Sprintf("%q: %s", key, text))
			}
		}
	}
	if revisions && keys == 0 && (a.versions != b.versions || a.history != b.history) {
		differ(fmt.Sprintf("the history of the keys: %d versions, %d, and not the same ones", a.versions, b.versions))
	}
}

// differs says in what, or nothing.
func (h held) differs(other held, revisions bool) string {
	var texts []string
	number := func(what string, a, b int64) {
		if a != b {
			texts = append(texts, fmt.Sprintf("%s %d, %d", what, a, b))
		}
	}
	if h.value != other.value {
		texts = append(texts, fmt.Sprintf("value (%d, %d bytes)", h.size, other.size))
	}
	if h.lease != other.lease {
		texts = append(texts, fmt.Sprintf("lease %x, %x", h.lease, other.lease))
	}
	if revisions {
		number("create revision", h.create, other.create)
		number("mod revision", h.mod, other.mod)
		number("version", h.version, other.version)
	}
	return strings.Join(texts, "; ")
}

func compareLeases(a, b []snapshot.Lease, differ func(string)) {
	ttls := func(leases []snapshot.Lease) map[int64]int64 {
		m := make(map[int64]int64)
		for _, l := range leases {
			m[l.ID] = l.TTL
		}
		return m
	}
	x, y := ttls(a), ttls(b)
	all := maps.Clone(x)
	maps.Copy(all, y)
	for _, id := range slices.Sorted(maps.Keys(all)) {
		_, inA := x[id]
		_, inB := y[id]
		switch {
		case !inB:
			differ(fmt.Sprintf("lease %x: only in the first", id))
		case !inA:
			differ(fmt.Sprintf("lease %x: only in the second", id))
		case x[id] != y[id]:
			differ(fmt.Sprintf("lease %x: TTL %d, %d", id, x[id], y[id]))
		}
	}
}
