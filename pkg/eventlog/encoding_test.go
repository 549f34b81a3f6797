package eventlog

import (
	"bytes"
	"encoding/binary"
	"errors"
	"math"
	"reflect"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

// everyField is a batch in which every field of every kind says something.
func everyField() *Batch {
	b := &Batch{ID: BatchID{1, 2, 3, 15: 16}, Base: 41, Records: []Record{
		{Kind: KindPut, Revision: Revision{7, 0}, Key: []byte("a\x00\xff"), Value: []byte("value"), CreateRevision: 3, Version: 4, Lease: -9},
		{Kind: KindPut, Revision: Revision{7, 1}, Key: []byte("empty"), Value: []byte{}, CreateRevision: 7, Version: 1},
		{Kind: KindDelete, Revision: Revision{math.MaxInt64, math.MaxInt64}, Key: []byte("a")},
		{Kind: KindLeaseGrant, Lease: math.MaxInt64, TTL: 9_000_000_000},
		{Kind: KindLeaseRevoke, Lease: math.MinInt64},
		{Kind: KindCompact, Revision: Revision{Main: 6}},
		{Kind: KindAlarmRaise, Member: math.MaxUint64, Alarm: 1},
		{Kind: KindAlarmDisarm, Member: 1, Alarm: math.MaxInt32},
	}}
	for i := range b.Records {
		b.Records[i].Seq, b.Records[i].Position = 100+int64(i), 42
	}
	return b
}

func TestBatchRoundTrip(t *testing.T) {
	want := everyField()
	encoded := AppendBatch([]byte("before"), want)
	if string(encoded[:6]) != "before" {
		t.Fatalf("what stood before is %q", encoded[:6])
	}
	got, err := DecodeBatch(encoded[6:])
	if err != nil {
		t.Fatalf("DecodeBatch: %v", err)
	}
	if !reflect.DeepEqual(got, want) {
		t.Fatalf("DecodeBatch: %+v, want %+v", got, want)
	}
}

func TestHeaderRoundTrip(t *testing.T) {
	for _, want := range everyField().Records {
		got := Record{Seq: want.Seq, Key: want.Key}
		h, err := DecodeHeader(AppendHeader(nil, &want), &got)
		if err != nil {
			t.Fatalf("DecodeHeader of %v: %v", want.Kind, err)
		}
		if err := h.VerifyValue(want.Value); err != nil {
			t.Errorf("VerifyValue of %v: %v", want.Kind, err)
		}
		for _, value := range [][]byte{[]byte("valuf"), []byte("value "), []byte("valu")} {
			if err := h.VerifyValue(value); !errors.Is(err, ErrCorrupt) {
				t.Errorf("VerifyValue of another value %q: %v", value, err)
			}
		}
		want.Value = nil
		if !reflect.DeepEqual(got, want) {
			t.Errorf("DecodeHeader: %+v, want %+v", got, want)
		}
	}
}

// TestHeaderIsItsRecords: a header fits no other seq and no other key.
func TestHeaderIsItsRecords(t *testing.T) {
	r := everyField().Records[0]
	header := AppendHeader(nil, &r)
	for name, other := range map[string]Record{
		"seq":    {Seq: r.Seq + 1, Key: r.Key},
		"key":    {Seq: r.Seq, Key: []byte("a\x00\xfe")},
		"no key": {Seq: r.Seq},
	} {
		if _, err := DecodeHeader(header, &other); !errors.Is(err, ErrCorrupt) {
			t.Errorf("DecodeHeader with another %s: %v, want ErrCorrupt", name, err)
		}
	}
}

// TestDamage: no byte may change and no end may be cut off unnoticed.
func TestDamage(t *testing.T) {
	whole := AppendBatch(nil, everyField())
	for i := range whole {
		for bit := range 8 {
			damaged := bytes.Clone(whole)
			damaged[i] ^= 1 << bit
			// Only the format of a batch says nothing of damage: it has no
			// checksum of its own that every format shares.
			if _, err := DecodeBatch(damaged); err == nil || i > 0 && !errors.Is(err, ErrCorrupt) {
				t.Fatalf("bit %d of byte %d changed: %v, want ErrCorrupt", bit, i, err)
			}
		}
		if _, err := DecodeBatch(whole[:i]); !errors.Is(err, ErrCorrupt) {
			t.Fatalf("cut to %d bytes: %v, want ErrCorrupt", i, err)
		}
	}
	if _, err := DecodeBatch(append(whole, 0)); !errors.Is(err, ErrCorrupt) {
		t.Fatalf("a byte more: %v, want ErrCorrupt", err)
	}
	r := everyField().Records[0]
	header := AppendHeader(nil, &r)
	for i := range header {
		for bit := range 8 {
			damaged := bytes.Clone(header)
			damaged[i] ^= 1 << bit
			if _, err := DecodeHeader(damaged, &Record{Seq: r.Seq, Key: r.Key}); !errors.Is(err, ErrCorrupt) {
				t.Fatalf("bit %d of byte %d of the header changed: %v, want ErrCorrupt", bit, i, err)
			}
		}
		if _, err := DecodeHeader(header[:i], &Record{Seq: r.Seq, Key: r.Key}); !errors.Is(err, ErrCorrupt) {
			t.Fatalf("header cut to %d bytes: %v, want ErrCorrupt", i, err)
		}
	}
}

// sealed ends a header with the checksum that it should have.
func sealed(r *Record, header []byte) []byte {
	header = header[:len(header)-4]
	return binary.BigEndian.AppendUint32(header, headerCRC(r.Seq, header, r.Key))
}

func TestNewerFormat(t *testing.T) {
	r := everyField().Records[0]
	header := AppendHeader(nil, &r)
	header[0] = formatVersion + 1
	_, err := DecodeHeader(sealed(&r, header), &r)
	if err == nil || errors.Is(err, ErrCorrupt) || !strings.Contains(err.Error(), "newer keelson") {
		t.Errorf("DecodeHeader of a newer format: %v", err)
	}
	batch := AppendBatch(nil, everyField())
	batch[0] = formatVersion + 1
	_, err = DecodeBatch(batch)
	if err == nil || errors.Is(err, ErrCorrupt) || !strings.Contains(err.Error(), "newer keelson") {
		t.Errorf("DecodeBatch of a newer format: %v", err)
	}
	header = AppendHeader(nil, &r)
	header[1] = byte(KindAlarmDisarm) + 1
	if _, err := DecodeHeader(sealed(&r, header), &r); !errors.Is(err, ErrCorrupt) {
		t.Errorf("DecodeHeader of an unknown kind: %v", err)
	}
}

// TestMisplaced: a record that belongs to another batch is refused although
// all its checksums hold.
func TestMisplaced(t *testing.T) {
	b := everyField()
	b.Records[3].Position++
	if _, err := DecodeBatch(AppendBatch(nil, b)); !errors.Is(err, ErrCorrupt) {
		t.Errorf("a record of another position: %v, want ErrCorrupt", err)
	}
	b = everyField()
	b.Records[3].Seq++
	if _, err := DecodeBatch(AppendBatch(nil, b)); !errors.Is(err, ErrCorrupt) {
		t.Errorf("a record of another seq: %v, want ErrCorrupt", err)
	}
}

func TestRandomRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		b := &Batch{Base: Position(rapid.Int64Range(0, math.MaxInt64-1).Draw(t, "base"))}
		copy(b.ID[:], rapid.SliceOfN(rapid.Byte(), 16, 16).Draw(t, "id"))
		seq := rapid.Int64Range(1, math.MaxInt64-100).Draw(t, "seq")
		n := rapid.IntRange(1, 20).Draw(t, "n")
		for i := range n {
			r := Record{
				Seq: seq + int64(i), Position: b.Position(), Kind: Kind(rapid.IntRange(1, 7).Draw(t, "kind")),
				Revision:       Revision{rapid.Int64().Draw(t, "main"), rapid.Int64().Draw(t, "sub")},
				CreateRevision: rapid.Int64().Draw(t, "create"), Version: rapid.Int64().Draw(t, "version"),
				Lease: rapid.Int64().Draw(t, "lease"), TTL: rapid.Int64().Draw(t, "ttl"),
				Member: rapid.Uint64().Draw(t, "member"), Alarm: rapid.Int32Range(0, math.MaxInt32).Draw(t, "alarm"),
			}
			if key := rapid.SliceOf(rapid.Byte()).Draw(t, "key"); len(key) > 0 {
				r.Key = key
			}
			if r.Kind == KindPut {
				r.Value = append([]byte{}, rapid.SliceOf(rapid.Byte()).Draw(t, "value")...)
			}
			b.Records = append(b.Records, r)
		}
		got, err := DecodeBatch(AppendBatch(nil, b))
		if err != nil || !reflect.DeepEqual(got, b) {
			t.Fatalf("DecodeBatch: %+v, %v, want %+v", got, err, b)
		}
	})
}

// FuzzDecodeBatch: whatever comes in, it neither panics nor takes more memory
// than it was given, and what it accepts it can write again.
func FuzzDecodeBatch(f *testing.F) {
	whole := AppendBatch(nil, everyField())
	f.Add(whole)
	f.Add(whole[:len(whole)/2])
	f.Add(AppendBatch(nil, &Batch{Records: []Record{{Seq: 1, Position: 1, Kind: KindDelete, Key: []byte("k")}}}))
	f.Add([]byte{formatVersion})
	// A huge count whose checksum holds.
	huge := append([]byte{formatVersion}, make([]byte, 16)...)
	huge = binary.AppendUvarint(append(huge, 0, 2), math.MaxUint64)
	f.Add(binary.BigEndian.AppendUint32(huge, checksum(huge)))
	f.Fuzz(func(t *testing.T, src []byte) {
		b, err := DecodeBatch(src)
		if err != nil {
			return
		}
		again, err := DecodeBatch(AppendBatch(nil, b))
		if err != nil || !reflect.DeepEqual(again, b) {
			t.Fatalf("%+v, written and read again: %+v, %v", b, again, err)
		}
	})
}

// FuzzDecodeHeader has the checksum put right, so that what is behind it is
// reached.
func FuzzDecodeHeader(f *testing.F) {
	for _, r := range everyField().Records {
		f.Add(AppendHeader(nil, &r), r.Seq, r.Key)
	}
	f.Add([]byte{formatVersion, 1, 0x80, 0x80}, int64(1), []byte{})
	f.Fuzz(func(t *testing.T, header []byte, seq int64, key []byte) {
		r := Record{Seq: seq, Key: key}
		if _, err := DecodeHeader(header, &r); err != nil && len(header) > 4 {
			header = sealed(&r, bytes.Clone(header))
		}
		h, err := DecodeHeader(header, &r)
		if err != nil {
			return
		}
		if r.Kind.String() == "" || r.Alarm < 0 {
			t.Fatalf("accepted %+v", r)
		}
		again := Record{Seq: seq, Key: key}
		if h.valueLen != 0 {
			return // the value is not known here
		}
		if _, err := DecodeHeader(AppendHeader(nil, &r), &again); err != nil || !reflect.DeepEqual(again, r) {
			t.Fatalf("%+v, written and read again: %+v, %v", r, again, err)
		}
	})
}
