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
// while fn has one, it fills the next, unless ahead, which is asked each time,
// says that others have more use for the processors.
func EachPage(
	ctx context.Context, through int64, read func(ctx context.Context, p *Page, from int64) error, ahead func() bool, fn func([]Record) error,
) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var pages [2]Page
	err := read(ctx, &pages[0], 0)
	for i := 0; err == nil && len(pages[i].records) > 0; i = 1 - i {
		records, next := pages[i].records, &pages[1-i]
		from := records[len(records)-1].Seq + 1
		next.records, next.data = next.records[:0], next.data[:0]
		switch {
		case from > through:
			return fn(records)
		case !ahead():
			if err = fn(records); err == nil {
				err = read(ctx, next, from)
			}
		default:
			var group errgroup.Group
			group.Go(func() error { return read(ctx, next, from) })
			if err := fn(records); err != nil {
				cancel()
				_ = group.Wait() // what it says comes of the cancellation
				return err
			}
			err = group.Wait()
		}
	}
	return err
}
