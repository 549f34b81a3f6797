package server

import (
	"context"
	"crypto/sha256"
	"errors"
	"hash"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/sirupsen/logrus"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/status"

	"github.com/keelson-io/keelson/pkg/snapshot/etcdfile"
	"github.com/keelson-io/keelson/pkg/store"
)

const (
	// blobBytes are in each message of a snapshot, as with etcd.
	blobBytes = 32 << 10

	// A client may let a snapshot wait for snapshotPatience in all, and as long
	// again for each patientBytes that it has read: meanwhile compaction waits,
	// and so does who wants the next one.
	snapshotPatience = 30 * time.Second
	patientBytes     = 8 << 20
)

// errSnapshotStalled ends the snapshot of a client that reads too slowly.
var errSnapshotStalled = status.Errorf(codes.DeadlineExceeded, "keelson: the snapshot was not read: a client has %v, and as much for each %d MiB", snapshotPatience, patientBytes>>20)

// snapshots are those under way: one is sent at a time.
type snapshots struct {
	turn     chan struct{}
	patience time.Duration // snapshotPatience; another one in tests
	seconds  prometheus.Histogram
}

func newSnapshots() *snapshots {
	return &snapshots{
		turn:     make(chan struct{}, 1),
		patience: snapshotPatience,
		seconds: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name:    "etcd_disk_backend_snapshot_duration_seconds",
			Help:    "How long snapshots took until they were sent.",
			Buckets: prometheus.ExponentialBuckets(.01, 2, 17),
		}),
	}
}

// Snapshot sends the data of now as a database of etcd's, page by page as it is
// read, so that it takes no room here. Writes go on.
func (s *maintenanceServer) Snapshot(_ *pb.SnapshotRequest, stream pb.Maintenance_SnapshotServer) error {
	ctx := stream.Context()
	select {
	case s.snapshots.turn <- struct{}{}:
	case <-ctx.Done():
		return toStatus(ctx, ctx.Err())
	case <-s.stopping:
		return rpctypes.ErrGRPCStopped
	}
	limit := s.snapshots.patience
	out := &blobStream{stream: stream, sha: sha256.New(), blob: blobs.Get(0), begun: time.Now()}
	done := make(chan error, 1)
	go func() {
		err := s.sendSnapshot(ctx, out)
		<-s.snapshots.turn
		done <- err
	}()
	// Only the end of the call ends a Send that waits for its client.
	look := time.NewTicker(limit / 10)
	defer look.Stop()
	for {
		select {
		case err := <-done:
			return toStatus(ctx, err)
		case <-s.stopping:
			return rpctypes.ErrGRPCStopped
		case <-look.C:
			waited := out.waited()
			if float64(waited) <= float64(limit)*(1+float64(out.messages.Load()*blobBytes)/patientBytes) {
				continue
			}
			s.log.Warnf("a snapshot is given up: its client reads too slowly, and has let it wait for %v", waited.Round(time.Millisecond))
			return errSnapshotStalled
		}
	}
}

// sendSnapshot is the whole of one.
func (s *maintenanceServer) sendSnapshot(ctx context.Context, out *blobStream) (err error) {
	start := time.Now()
	src, err := s.store.Export(ctx)
	if err != nil {
		s.log.WithError(err).Warn("a snapshot could not be begun")
		return err
	}
	state := src.State()
	log := s.log.WithFields(logrus.Fields{"revision": state.Revision, "records": state.Records})
	defer func() {
		err = errors.Join(err, src.Close())
		took := time.Since(start)
		log = log.WithField("took", took.Round(time.Millisecond).String())
		if err != nil {
			log.WithError(err).Warn("a snapshot could not be sent")
			return
		}
		s.snapshots.seconds.Observe(took.Seconds())
		log.Info("sent a snapshot")
	}()
	file, err := etcdfile.NewStream(src, s.fileOptions())
	if err != nil {
		return err
	}
	log = log.WithField("bytes", file.Size())
	log.Info("sending a snapshot")
	out.left = file.Size()
	if err := file.Write(ctx, out); err != nil {
		return err
	}
	return out.finish()
}

// fileOptions are what a database of etcd's says of the cluster.
func (s *maintenanceServer) fileOptions() etcdfile.Options {
	opt := etcdfile.Options{Term: s.cfg.Term(), Index: uint64(s.store.Position())}
	for _, m := range (&clusterServer{Server: s.Server}).members() {
		opt.Members = append(opt.Members, etcdfile.Member{
			ID: m.ID, Name: m.Name, PeerURLs: m.PeerURLs, ClientURLs: m.ClientURLs, IsLearner: m.IsLearner,
		})
	}
	return opt
}

// blobStream sends what is written to it in messages of blobBytes.
type blobStream struct {
	stream   pb.Maintenance_SnapshotServer
	sha      hash.Hash
	left     int64   // bytes that are not sent
	blob     *[]byte // of the next message
	messages atomic.Int64
	blocked  atomic.Int64 // nanoseconds that finished sends have taken
	since    atomic.Int64 // when the one under way began, in nanoseconds after begun; 0 if none is
	begun    time.Time
}

// waited is for how long the client was waited for.
func (b *blobStream) waited() time.Duration {
	waited := b.blocked.Load()
	if since := b.since.Load(); since > 0 {
		waited += int64(time.Since(b.begun)) - since
	}
	return time.Duration(waited)
}

// Write implements io.Writer.
func (b *blobStream) Write(p []byte) (int, error) {
	written := len(p)
	for len(p) > 0 {
		n := min(len(p), blobBytes-len(*b.blob))
		*b.blob = append(*b.blob, p[:n]...)
		p = p[n:]
		if len(*b.blob) == blobBytes {
			if err := b.send(); err != nil {
				return 0, err
			}
		}
	}
	return written, nil
}

// send sends the blob.
func (b *blobStream) send() error {
	b.sha.Write(*b.blob)
	b.left -= int64(len(*b.blob))
	return b.message()
}

func (b *blobStream) message() error {
	// The fields of a pb.SnapshotResponse.
	head := encoder{buf: make([]byte, 0, 2*messageRoom)}
	head.uint(2, uint64(b.left))
	head.open(3, len(*b.blob))
	tail := encoder{buf: head.buf[len(head.buf):]}
	tail.string(4, storageVersion)
	message := encodedMessage{mem.SliceBuffer(head.buf), mem.NewBuffer(b.blob, &blobs), mem.SliceBuffer(tail.buf)}
	b.blob = blobs.Get(0)
	since := max(1, int64(time.Since(b.begun)))
	b.since.Store(since)
	err := b.stream.SendMsg(message)
	b.since.Store(0)
	b.blocked.Add(int64(time.Since(b.begun)) - since)
	b.messages.Add(1)
	return err
}

// finish sends the rest, and the checksum of all.
func (b *blobStream) finish() error {
	if len(*b.blob) > 0 {
		if err := b.send(); err != nil {
			return err
		}
	}
	*b.blob = b.sha.Sum(*b.blob)
	return b.message()
}

// encodedMessage is a message that needs no codec any more.
type encodedMessage mem.BufferSlice

// blobPool has room for blobs. gRPC's own would be cleared each time.
type blobPool struct{ free sync.Pool }

var blobs blobPool

// Get implements mem.BufferPool, for one size.
func (p *blobPool) Get(int) *[]byte {
	if b, ok := p.free.Get().(*[]byte); ok {
		*b = (*b)[:0]
		return b
	}
	b := make([]byte, 0, blobBytes)
	return &b
}

// Put implements mem.BufferPool.
func (p *blobPool) Put(b *[]byte) { p.free.Put(b) }

var _ etcdfile.Sized = (*store.Export)(nil)
