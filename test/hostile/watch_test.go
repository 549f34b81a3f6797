package hostile

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"testing"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

func watchStream(ctx context.Context, t *testing.T, c pb.WatchClient) pb.Watch_WatchClient {
	t.Helper()
	stream, err := c.Watch(ctx)
	if err != nil {
		t.Fatal(err)
	}
	return stream
}

func create(r *pb.WatchCreateRequest) *pb.WatchRequest {
	return &pb.WatchRequest{RequestUnion: &pb.WatchRequest_CreateRequest{CreateRequest: r}}
}

func cancelWatch(id int64) *pb.WatchRequest {
	return &pb.WatchRequest{RequestUnion: &pb.WatchRequest_CancelRequest{CancelRequest: &pb.WatchCancelRequest{WatchId: id}}}
}

// TestManyWatchers has 100,000 watchers on one stream, of keys and of ranges,
// some of them each other's; all get their events, and all are canceled.
func TestManyWatchers(t *testing.T) {
	s := start(t)
	n := scaled(t, 100_000)
	s.under(t, 250, func(t *testing.T) {
		ctx := patient(t)
		conn := s.conn(t)
		stream := watchStream(ctx, t, pb.NewWatchClient(conn))
		sent := make(chan error, 1)
		go func() {
			for i := range n {
				r := &pb.WatchCreateRequest{Key: fmt.Appendf(nil, "many/%06d", i/2)}
				if i%2 == 1 {
					r.RangeEnd = fmt.Appendf(nil, "many/%06d", i/2+10)
				}
				if err := stream.Send(create(r)); err != nil {
					sent <- err
					return
				}
			}
			sent <- nil
		}()
		recv := func() *pb.WatchResponse {
			resp, err := stream.Recv()
			if err != nil {
				t.Fatal(err)
			}
			return resp
		}
		for i := range n {
			if resp := recv(); !resp.Created || resp.Canceled || resp.WatchId != int64(i) {
				t.Fatalf("creating watcher %d: %v", i, resp)
			}
		}
		if err := <-sent; err != nil {
			t.Fatal(err)
		}
		t.Logf("%d MiB with %d watchers", s.memory(t, "VmRSS"), n)

		// A key in the middle has one watcher of its own and ten ranges.
		kv := pb.NewKVClient(conn)
		if _, err := kv.Put(ctx, &pb.PutRequest{Key: []byte("many/001000"), Value: []byte("seen")}); err != nil {
			t.Fatal(err)
		}
		for range 11 {
			if resp := recv(); len(resp.Events) != 1 || string(resp.Events[0].Kv.Key) != "many/001000" {
				t.Fatalf("%v", resp)
			}
		}

		go func() {
			for i := range n {
				if err := stream.Send(cancelWatch(int64(i))); err != nil {
					sent <- err
					return
				}
			}
			sent <- nil
		}()
		for i := range n {
			if resp := recv(); !resp.Canceled || resp.WatchId != int64(i) || len(resp.Events) > 0 {
				t.Fatalf("canceling watcher %d: %v", i, resp)
			}
		}
		if err := <-sent; err != nil {
			t.Fatal(err)
		}
	})
}

// TestUnreadAnswers creates watchers on a stream and never reads that they are
// there: the server must not keep the answers of all of them.
func TestUnreadAnswers(t *testing.T) {
	s := start(t)
	n := scaled(t, 200_000)
	s.under(t, 150, func(t *testing.T) {
		ctx, cancel := context.WithCancel(patient(t))
		conn := s.conn(t)
		stream := watchStream(ctx, t, pb.NewWatchClient(conn))
		sent := make(chan error, 1)
		go func() {
			var err error
			for i := 0; i < n && err == nil; i++ {
				err = stream.Send(create(&pb.WatchCreateRequest{Key: bytes.Repeat([]byte("k"), 1000)}))
			}
			sent <- err
		}()
		// Other streams of the same connection go on meanwhile.
		for i := range 2000 {
			if _, err := pb.NewKVClient(conn).Range(ctx, &pb.RangeRequest{Key: []byte("a")}); err != nil {
				t.Fatalf("request %d beside the stream: %v", i, err)
			}
		}
		select {
		case err := <-sent:
			t.Errorf("the server took %d requests whose answers nobody reads: %v", n, err)
		default:
		}
		cancel()
		if err := <-sent; status.Code(err) != codes.Canceled && !errors.Is(err, io.EOF) {
			t.Error(err)
		}
	})
}

// TestUnreadStreams has watch streams that nobody reads, each with watchers
// that begin in the past and want previous values, while large values are
// written. In the end one of them is read: nothing is missing.
func TestUnreadStreams(t *testing.T) {
	for _, load := range []struct {
		name              string
		streams, watchers int
		limit             int
	}{
		{"50 streams of 20 watchers", 50, 20, 2000},
		{"1000 streams of one watcher", 1000, 1, 2500},
	} {
		t.Run(load.name, func(t *testing.T) {
			s := start(t, "--cache-bytes", "1") // what a stream reads from the past is its own
			value := bytes.Repeat([]byte("0123456789"), 10<<10)
			const past, present = 300, 300
			kv := pb.NewKVClient(s.conn(t))
			write := func(i int) {
				_, err := kv.Put(patient(t), &pb.PutRequest{Key: fmt.Appendf(nil, "large/%d", i%10), Value: value})
				if err != nil {
					t.Fatal(err)
				}
			}
			for i := range past {
				write(i)
			}
			s.under(t, load.limit, func(t *testing.T) {
				var first pb.Watch_WatchClient
				for range scaled(t, load.streams) {
					stream := watchStream(patient(t), t, pb.NewWatchClient(s.conn(t)))
					if first == nil {
						first = stream
					}
					for w := range load.watchers {
						err := stream.Send(create(&pb.WatchCreateRequest{
							Key: []byte("large/"), RangeEnd: []byte("large0"), PrevKv: true, StartRevision: int64(2 + w),
						}))
						if err != nil {
							t.Fatal(err)
						}
					}
				}
				for i := range present {
					write(past + i)
				}
				if err := readAll(first, load.watchers, past+present, len(value)); err != nil {
					t.Error(err)
				}
			})
		})
	}
}

// readAll reads from stream what watchers of "large/" get of n puts, which
// begin at revision 2 + their id, as far as those of them that put last.
func readAll(stream pb.Watch_WatchClient, watchers, n, size int) error {
	next := make([]int, watchers) // of each watcher, puts seen
	for w := range next {
		next[w] = w
	}
	created := 0
	for done := 0; done < watchers; {
		resp, err := stream.Recv()
		if err != nil {
			return err
		}
		if resp.Created {
			created++
			continue
		}
		if resp.Canceled || resp.WatchId < 0 || resp.WatchId >= int64(watchers) {
			return fmt.Errorf("%v", resp)
		}
		for _, ev := range resp.Events {
			at := &next[resp.WatchId]
			if err := checkPut(ev, *at, size); err != nil {
				return fmt.Errorf("watcher %d: %w", resp.WatchId, err)
			}
			if *at++; *at == n {
				done++
			}
		}
	}
	if created != watchers {
		return fmt.Errorf("%d of %d watchers created", created, watchers)
	}
	return nil
}

func checkPut(ev *mvccpb.Event, i, size int) error {
	key := fmt.Sprintf("large/%d", i%10)
	switch {
	case string(ev.Kv.Key) != key || ev.Kv.Version != int64(i/10+1) || len(ev.Kv.Value) != size:
		return fmt.Errorf("put %d is shown as %s, version %d, %d bytes", i, ev.Kv.Key, ev.Kv.Version, len(ev.Kv.Value))
	case i >= 10 && (ev.PrevKv == nil || len(ev.PrevKv.Value) != size):
		return errors.New("a previous value is missing")
	}
	return nil
}
