package server

import (
	"bytes"
	"context"
	"fmt"
	"testing"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"golang.org/x/sync/errgroup"
	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"
)

// startPairs starts a member with keys of several kinds, each below a prefix.
func startPairs(t *testing.T) (m *member, prefixes []string) {
	m = startMember(t, memberOptions{})
	lease, err := m.store.LeaseGrant(t.Context(), 7, 600)
	if err != nil {
		t.Fatal(err)
	}
	for prefix, sizes := range map[string][]int{
		"few/":   {0, 1, 100},
		"small/": {10, 0, 127, 128, 1},
		"even/":  {1 << 10},
		"mixed/": {1, partBytes, 5, partBytes - 30, 3 * partBytes, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0},
		"large/": {copiedPair, 2 * copiedPair, 3 * partBytes},
	} {
		prefixes = append(prefixes, prefix)
		n := 150
		if prefix == "few/" {
			n = 5
		}
		for i := range n {
			put := &pb.PutRequest{Key: fmt.Appendf(nil, "%s%03d", prefix, i), Value: bytes.Repeat([]byte{byte(i)}, sizes[i%len(sizes)])}
			if i%3 == 0 {
				put.Lease = lease.ID
			}
			for range 1 + i%2 {
				if _, err := m.store.Put(t.Context(), put); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	return m, prefixes
}

// TestPairs compares answers whose pairs are encoded while they are sent with
// those that are messages.
func TestPairs(t *testing.T) {
	m, prefixes := startPairs(t)
	revision, _ := m.store.Revision()
	rapid.Check(t, func(t *rapid.T) {
		from := rapid.SampledFrom(prefixes).Draw(t, "prefix")
		r := &pb.RangeRequest{
			Key: []byte(from), RangeEnd: []byte(from[:len(from)-1] + "0"),
			Limit:      rapid.OneOf(rapid.Just(int64(0)), rapid.Int64Range(1, 160)).Draw(t, "limit"),
			Revision:   rapid.OneOf(rapid.Just(int64(0)), rapid.Int64Range(1, revision)).Draw(t, "revision"),
			KeysOnly:   rapid.Bool().Draw(t, "keys only"),
			CountOnly:  rapid.IntRange(0, 9).Draw(t, "count only") == 0,
			SortTarget: pb.RangeRequest_SortTarget(rapid.IntRange(0, 4).Draw(t, "target")),
			SortOrder:  pb.RangeRequest_SortOrder(rapid.IntRange(0, 2).Draw(t, "order")),
		}
		plain, err := m.store.Range(context.Background(), r)
		if err != nil {
			t.Fatal(err)
		}
		want, err := proto.MarshalOptions{Deterministic: true}.Marshal(plain)
		if err != nil {
			t.Fatal(err)
		}
		resp, pairs, err := m.store.RangePairs(context.Background(), r)
		if err != nil {
			t.Fatal(err)
		}
		if pairs.Len() != len(plain.Kvs) || resp.Kvs != nil {
			t.Fatalf("%d pairs and %d messages, not %d pairs", pairs.Len(), len(resp.Kvs), len(plain.Kvs))
		}
		if got := marshaled(t, &heldResponse{resp, &hold{pairs: pairs}}); !bytes.Equal(got, want) {
			t.Fatalf("%d bytes\n%x, not %d\n%x", len(got), got, len(want), want)
		}
	})
}

// TestPairsParts shows that what is sent in parts does not exist before, and
// that a part is there until the last reference to it is given back.
func TestPairsParts(t *testing.T) {
	m, _ := startPairs(t)
	resp, pairs, err := m.store.RangePairs(t.Context(), &pb.RangeRequest{Key: []byte("even/"), RangeEnd: []byte("even0")})
	if err != nil {
		t.Fatal(err)
	}
	data, size := encodePairs(resp, &pairs)
	if data.Len() != size || size < 4*partBytes {
		t.Fatalf("%d bytes, not %d", data.Len(), size)
	}
	parts := 0
	for _, buffer := range data {
		part, ok := buffer.(*pairsBuffer)
		if !ok {
			continue
		}
		parts++
		if part.buf != nil {
			t.Fatal("a part is encoded before it is asked for")
		}
		if part.Len() > partBytes {
			t.Errorf("a part has %d bytes", part.Len())
		}
		part.Ref()
		first := bytes.Clone(part.ReadOnlyData())
		part.Free()
		if !bytes.Equal(part.ReadOnlyData(), first) || !bytes.Equal(part.Slice(1, 9).ReadOnlyData(), first[1:9]) || len(first) != part.Len() {
			t.Fatal("a part has changed")
		}
		part.Free()
		if part.buf != nil {
			t.Fatal("a part that was sent keeps its buffer")
		}
	}
	if parts < 5 {
		t.Errorf("%d parts", parts)
	}
}

// TestPairsTogether has many lists on one connection, whose parts share the
// buffers.
func TestPairsTogether(t *testing.T) {
	m, prefixes := startPairs(t)
	g, ctx := errgroup.WithContext(t.Context())
	for i := range 8 {
		from := prefixes[i%len(prefixes)]
		r := &pb.RangeRequest{Key: []byte(from), RangeEnd: []byte(from[:len(from)-1] + "0")}
		want, err := m.store.Range(ctx, r)
		if err != nil {
			t.Fatal(err)
		}
		m.server.fill(want.Header)
		g.Go(func() error {
			for range 20 {
				got, err := m.kv.Range(ctx, r)
				if err != nil {
					return err
				}
				if !proto.Equal(got, want) {
					return fmt.Errorf("%s: %d keys differ from %d", from, len(got.Kvs), len(want.Kvs))
				}
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
}
