package eventlog

import (
	"bytes"
	"context"
	"errors"
	"runtime"
	"sync/atomic"
	"testing"
	"time"
)

// row is what a driver stores of a record.
type row struct {
	seq                int64
	header, key, value []byte
}

func rowOf(r *Record) row { return row{r.Seq, AppendHeader(nil, r), r.Key, r.Value} }

func (p *Page) addRow(r row) error { return p.Add(r.seq, r.header, r.key, r.value) }

func TestPageAdd(t *testing.T) {
	var p Page
	for _, r := range []Record{
		{Seq: 1, Kind: KindPut, Key: []byte("a"), Value: []byte("one"), Revision: Revision{Main: 2}, Version: 1, CreateRevision: 2},
		{Seq: 2, Kind: KindPut, Key: []byte("b"), Value: []byte{}},
		{Seq: 3, Kind: KindPut, Key: []byte("c"), Value: bytes.Repeat([]byte{7}, 3*ScanBytes)}, // more than there is room for
		{Seq: 4, Kind: KindLeaseGrant, Lease: 7, TTL: 5},
		{Seq: 5, Kind: KindDelete, Key: []byte("a")},
	} {
		stored := rowOf(&r)
		if r.Kind != KindPut {
			stored.value = nil
		}
		stored.key, stored.value = bytes.Clone(stored.key), bytes.Clone(stored.value)
		if err := p.addRow(stored); err != nil {
			t.Fatal(err)
		}
		clear(stored.key) // a driver uses its memory again
		clear(stored.value)
		got := p.records[len(p.records)-1]
		if got.Seq != r.Seq || got.Kind != r.Kind || !bytes.Equal(got.Key, r.Key) || !bytes.Equal(got.Value, r.Value) ||
			(got.Value != nil) != (r.Kind == KindPut) || (got.Key != nil) != (len(r.Key) > 0) || got.Lease != r.Lease {
			t.Errorf("record %d is %+v", r.Seq, got)
		}
	}
	if first := p.records[0]; string(first.Key) != "a" || string(first.Value) != "one" {
		t.Errorf("the first record has become %q=%q", first.Key, first.Value)
	}

	good := rowOf(&Record{Seq: 9, Kind: KindPut, Key: []byte("k"), Value: []byte("v")})
	for name, change := range map[string]func(*row){
		"no header":     func(r *row) { r.header = nil },
		"another seq":   func(r *row) { r.seq++ },
		"another key":   func(r *row) { r.key = []byte("l") },
		"another value": func(r *row) { r.value = []byte("w") },
		"no value":      func(r *row) { r.value = nil },
	} {
		bad := good
		change(&bad)
		if err := p.addRow(bad); !errors.Is(err, ErrCorrupt) {
			t.Errorf("%s: %v, want ErrCorrupt", name, err)
		}
	}
}

// TestEachPage reads ahead and does not, to the end and not.
func TestEachPage(t *testing.T) {
	const through = 20_000 // of small records: some pages
	stored := make([]row, through)
	for i := range stored {
		stored[i] = rowOf(&Record{Seq: int64(i + 1), Kind: KindDelete, Key: []byte{byte(i)}})
	}
	refused := errors.New("refused")
	for _, ahead := range []bool{false, true} {
		var using, beside atomic.Bool // a page is in use; another one was read meanwhile
		reads := 0
		read := func(ctx context.Context, p *Page, from int64) error {
			beside.Store(beside.Load() || using.Load())
			if reads++; from == 0 {
				from = 1
			}
			for seq := from; seq <= through && !p.Full(); seq++ {
				if err := p.addRow(stored[seq-1]); err != nil {
					return err
				}
			}
			return ctx.Err()
		}
		next, pages := int64(1), 0
		use := func(records []Record) error {
			using.Store(true)
			defer using.Store(false)
			pages++
			for end := time.Now().Add(10 * time.Second); ahead && next < through/2 && !beside.Load() && time.Now().Before(end); {
				runtime.Gosched() // until the next page is begun
			}
			for _, r := range records {
				if r.Seq != next || !bytes.Equal(r.Key, []byte{byte(r.Seq - 1)}) {
					t.Fatalf("record %d with key %x where %d belongs", r.Seq, r.Key, next)
				}
				next++
			}
			return nil
		}
		only := func() bool { return ahead }
		if err := EachPage(t.Context(), through, read, only, use); err != nil || next != through+1 {
			t.Errorf("ahead %v: %v, up to record %d", ahead, err, next-1)
		}
		if pages < 4 || reads != pages || beside.Load() != ahead {
			t.Errorf("ahead %v: %d pages in %d reads, beside each other: %v", ahead, pages, reads, beside.Load())
		}
		if err := EachPage(t.Context(), through, read, only, func([]Record) error { return refused }); !errors.Is(err, refused) {
			t.Errorf("ahead %v: a page that is refused: %v", ahead, err)
		}
		next = 1
		failing := func(ctx context.Context, p *Page, from int64) error {
			if from > through/2 {
				return ErrCorrupt
			}
			return read(ctx, p, from)
		}
		if err := EachPage(t.Context(), through, failing, only, use); !errors.Is(err, ErrCorrupt) || next < through/4 {
			t.Errorf("ahead %v: a page that cannot be read: %v, after record %d", ahead, err, next-1)
		}
	}
}
