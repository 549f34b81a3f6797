package etcdfile

import (
	"context"
	"fmt"
	"io"
	"iter"

	"github.com/keelson-io/keelson/pkg/eventlog"
	"github.com/keelson-io/keelson/pkg/snapshot"
)

// Sized is a source that knows beforehand how large its records are.
type Sized interface {
	snapshot.Source

	// Sizes returns the main revision of the newest record, and of every record
	// how many bytes AppendRevision and AppendKeyValue make of it, in order.
	Sizes() (newest int64, each iter.Seq2[int, int])
}

// errLayout: the source has other records than it said.
var errLayout = fmt.Errorf("%w: the records are not as large as they were said to be", eventlog.ErrCorrupt)

// Stream is the database of a source: it can be written from its first byte to
// its last, and needs no room but that.
type Stream struct {
	src    Sized
	opt    Options
	layout layout
}

// NewStream finds out where everything will be.
func NewStream(src Sized, opt Options) (*Stream, error) {
	opt.setDefaults()
	d := newDatabase(nil, src.State(), opt)
	var each iter.Seq2[int, int]
	d.last, each = src.Sizes()
	for name, value := range each {
		if err := d.keys.count(name, value); err != nil {
			return nil, err
		}
	}
	l, err := d.finish()
	return &Stream{src: src, opt: opt, layout: l}, err
}

// Size is how many bytes Write writes. A snapshot has a SHA-256 of them behind.
func (s *Stream) Size() int64 { return s.layout.size() }

// Write writes the database to w, which does not keep what it is given.
func (s *Stream) Write(ctx context.Context, w io.Writer) error {
	if _, err := w.Write(s.layout.meta()); err != nil {
		return err
	}
	d := newDatabase(w, s.src.State(), s.opt)
	if err := s.src.Records(ctx, func(r *eventlog.Record) error {
		if d.next >= s.layout.pages {
			return errLayout
		}
		return d.add(r)
	}); err != nil {
		return err
	}
	l, err := d.finish()
	if err == nil && l != s.layout {
		err = errLayout
	}
	return err
}
