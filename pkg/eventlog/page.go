package eventlog

import (
	"context"
	"fmt"

	"golang.org/x/sync/errgroup"
)

// pageRecords are on a page at most, for those that have neither key nor value.
const pageRecords = 4096

// Page is memory for the records that a Scan shows at a time. It is used again
// for those that follow.
type Page struct {
	records []Record
	data    []byte // their keys and values
}

// Add adds the record of a row, of which it keeps nothing, and verifies it. A key
// that is empty is none, and so is a value that is nil.
func (p *Page) Add(seq int64, header, key, value []byte) error {
	r := Record{Seq: seq}
	if len(key) > 0 {
		r.Key = p.keep(key)
	}
	h, err := DecodeHeader(header, &r)
	if err != nil {
		return err
	}
	if (value != nil) != (r.Kind == KindPut) {
		return fmt.Errorf("%w: %v record %d has a value where it must not, or none", ErrCorrupt, r.Kind, seq)
	}
	if err := h.VerifyValue(value); err != nil {
		return fmt.Errorf("record %d: %w", seq, err)
	}
	if value != nil {
		r.Value = p.keep(value)
	}
	p.records = append(p.records, r)
	return nil
}

// keep copies b. Where the memory is too small, what lies in it stays there.
func (p *Page) keep(b []byte) []byte {
	if p.data == nil {
		p.data = make([]byte, 0, ScanBytes+ScanBytes/8) // the last one may be beyond
	}
	start := len(p.data)
	p.data = append(p.data, b...)
	return p.data[start:len(p.data):len(p.data)]
}

// Full reports whether there is as much on the page as there is to be.
func (p *Page) Full() bool { return len(p.data) >= ScanBytes || len(p.records) >= pageRecords }

// EachPage is Scan.Records for drivers: it calls fn with the records up to seq
// through. read puts those from a seq on onto an empty page until it is full;
// while fn has one, it fills the next.
func EachPage(ctx context.Context, through int64, read func(ctx context.Context, p *Page, from int64) error, fn func([]Record) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	group, ctx := errgroup.WithContext(ctx)
	full := make(chan []Record) // who takes one has no use for the one before
	group.Go(func() error {
		defer close(full)
		var pages [2]Page
		for i, from := 0, int64(0); from <= through; i = 1 - i {
			p := &pages[i]
			p.records, p.data = p.records[:0], p.data[:0]
			if err := read(ctx, p, from); err != nil || len(p.records) == 0 {
				return err
			}
			from = p.records[len(p.records)-1].Seq + 1
			select {
			case full <- p.records:
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		return nil
	})
	for records := range full {
		if err := fn(records); err != nil {
			cancel()
			_ = group.Wait() // what it says comes of the cancellation
			return err
		}
	}
	return group.Wait()
}
