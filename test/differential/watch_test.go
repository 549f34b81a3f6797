package differential

import (
	"bytes"
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"google.golang.org/protobuf/proto"
)

// Watchers come and go beside the requests. What each is told, in its order,
// must be the same on both servers; how the events are put into responses need
// not be, since keelson puts more into one.
//
// Nothing is left to chance but what the random source draws: before the next
// step everything that was to come has come, which the list of all events
// says, so that no cancel or compaction races with events under way.

const (
	maxStreams  = 3
	maxWatchers = 5

	// fragmentSize is what a response is split above, if its watcher wants that.
	fragmentSize = 2 << 20
)

// stream is one watch stream on both servers.
type stream struct {
	sides    [2]*inbox
	watchers map[int64]*watched // by id, as long as the id is taken
	answers  int                // to create and cancel requests that were sent
}

// watched is a watcher that both servers have created.
type watched struct {
	req       *pb.WatchCreateRequest
	from      int64 // the first revision that it is told of
	compacted bool  // it was created below the compacted revision
	expected  int   // events
	next      int   // the first event of sequence.events that was not yet looked at
}

// wants is whether the watcher is told of ev.
func (w *watched) wants(ev *mvccpb.Event) bool {
	if w.compacted || ev.Kv.ModRevision < w.from {
		return false
	}
	filter := pb.WatchCreateRequest_NOPUT
	if ev.Type == mvccpb.Event_DELETE {
		filter = pb.WatchCreateRequest_NODELETE
	}
	if slices.Contains(w.req.Filters, filter) {
		return false
	}
	key, end := w.req.Key, w.req.RangeEnd
	if len(key) == 0 {
		key = []byte{0}
	}
	switch {
	case len(end) == 0:
		return bytes.Equal(ev.Kv.Key, key)
	case bytes.Equal(end, []byte{0}):
		return bytes.Compare(ev.Kv.Key, key) >= 0
	default:
		return bytes.Compare(ev.Kv.Key, key) >= 0 && bytes.Compare(ev.Kv.Key, end) < 0
	}
}

// told is what was said to one watch id.
type told struct {
	lines    []string
	events   int   // since it was created
	created  bool  // and not canceled
	stopped  bool  // by a compaction
	open     int64 // the revision of which the next response has more events
	last     int64 // the newest revision seen
	promised int64 // up to here everything has been sent
	largest  int   // bytes of a response with several events
}

// inbox is what one server sends on a stream.
type inbox struct {
	rpc pb.Watch_WatchClient

	mu sync.Mutex
	// Guarded by mu.
	ids     map[int64]*told
	answers int   // to create and cancel requests
	newest  int64 // the watcher created last; -1: it was refused
	asked   bool  // somebody has asked for fragments
	wrong   string
	changed chan struct{} // closed and replaced
}

func (s *sequence) openInbox(side *side) *inbox {
	rpc, err := side.watched.watch.Watch(s.ctx)
	if err != nil {
		s.fatalf("%v", err)
	}
	in := &inbox{rpc: rpc, ids: map[int64]*told{}, changed: make(chan struct{})}
	go func() {
		for {
			resp, err := rpc.Recv()
			in.mu.Lock()
			if err == nil {
				in.take(resp)
			} else if in.wrong == "" {
				in.wrong = "the stream ended: " + err.Error()
			}
			close(in.changed)
			in.changed = make(chan struct{})
			in.mu.Unlock()
			if err != nil {
				return
			}
		}
	}()
	return in
}

// take notes one response. The caller holds in.mu.
func (in *inbox) take(r *pb.WatchResponse) {
	id := in.ids[r.WatchId]
	if id == nil {
		id = &told{}
		in.ids[r.WatchId] = id
	}
	say := func(format string, args ...any) { id.lines = append(id.lines, fmt.Sprintf(format, args...)) }
	switch {
	case r.Created && r.Canceled:
		say("refused at %d: %s (compacted %d)", r.Header.Revision, r.CancelReason, r.CompactRevision)
		in.answers++
		in.newest = -1
	case r.Created:
		say("created at %d", r.Header.Revision)
		*id = told{lines: id.lines, created: true}
		in.answers++
		in.newest = r.WatchId
	case r.Canceled:
		say("canceled at %d: %q (compacted %d)", r.Header.Revision, r.CancelReason, r.CompactRevision)
		id.created = false
		if r.CompactRevision != 0 {
			id.stopped = true
		} else {
			in.answers++
		}
	case len(r.Events) > 0:
		in.takeEvents(r, id)
	case r.WatchId == -1:
		say("progress %d", r.Header.Revision)
		for _, other := range in.ids {
			other.promised = r.Header.Revision
		}
	default:
		// Regular progress comes when it comes.
		if r.Header.Revision < id.last {
			in.fault("progress %d of watch %d after events of %d", r.Header.Revision, r.WatchId, id.last)
		}
		id.promised = r.Header.Revision
	}
	if len(r.Events) > 0 && (r.Created || r.Canceled) {
		in.fault("events in %v", r)
	}
}

func (in *inbox) takeEvents(r *pb.WatchResponse, id *told) {
	first, last := r.Events[0].Kv.ModRevision, r.Events[len(r.Events)-1].Kv.ModRevision
	switch {
	case !id.created:
		in.fault("events for watch %d, which does not exist", r.WatchId)
	case first == id.last && id.open != first:
		in.fault("revision %d of watch %d came in two responses", first, r.WatchId)
	case first <= id.promised:
		in.fault("event of %d of watch %d after progress %d", first, r.WatchId, id.promised)
	case r.Header.Revision < last:
		in.fault("header %d of watch %d with events of %d", r.Header.Revision, r.WatchId, last)
	case r.Fragment && !in.asked:
		in.fault("a fragment for watch %d, and nobody has asked", r.WatchId)
	}
	for _, ev := range r.Events {
		id.lines = append(id.lines, text(ev))
	}
	if id.events += len(r.Events); len(r.Events) > 1 {
		id.largest = max(id.largest, proto.Size(r))
	}
	id.last, id.open = last, 0
	if r.Fragment {
		id.open = last
	}
}

func (in *inbox) fault(format string, args ...any) {
	if in.wrong == "" {
		in.wrong = fmt.Sprintf(format, args...)
	}
}

// await waits until done says so, which is called with in.mu held, and returns
// what is wrong.
func (in *inbox) await(ctx context.Context, done func() bool) string {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	for {
		in.mu.Lock()
		ready := done() // it may find something wrong
		wrong, changed := in.wrong, in.changed
		in.mu.Unlock()
		if ready || wrong != "" {
			return wrong
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return "it did not come"
		}
	}
}

// transcript is all that was said on the stream, by id.
func (in *inbox) transcript() string {
	in.mu.Lock()
	defer in.mu.Unlock()
	var out strings.Builder
	for _, id := range slices.Sorted(maps.Keys(in.ids)) {
		fmt.Fprintf(&out, "watch %d:\n", id)
		for _, line := range in.ids[id].lines {
			out.WriteString("  " + line + "\n")
		}
	}
	return out.String()
}

var names = [2]string{"etcd", "keelson"}

// settle waits until everything that is to come on st has come, and compares.
func (s *sequence) settle(st *stream, what string) {
	for _, w := range st.watchers {
		for _, ev := range s.events[w.next:] {
			if w.wants(ev) {
				w.expected++
			}
		}
		w.next = len(s.events)
	}
	for i, in := range st.sides {
		wrong := in.await(s.ctx, func() bool {
			for id, w := range st.watchers {
				t := in.ids[id]
				if t != nil && w.req.Fragment && t.largest > fragmentSize {
					in.fault("%d bytes for watch %d, which wants fragments", t.largest, id)
				}
				if t == nil || t.events < w.expected || t.stopped != w.compacted {
					return false
				}
			}
			return in.answers >= st.answers
		})
		if wrong != "" {
			s.fatalf("%s: watch of %s: %s\n%s", what, names[i], wrong, s.transcripts(st))
		}
	}
	if st.sides[0].transcript() != st.sides[1].transcript() {
		s.fatalf("%s: the watches differ\n%s", what, s.transcripts(st))
	}
}

func (s *sequence) transcripts(st *stream) string {
	return "of etcd:\n" + st.sides[0].transcript() + "of keelson:\n" + st.sides[1].transcript()
}

func (s *sequence) settleAll(what string) {
	for _, st := range s.streams {
		s.settle(st, what)
	}
}

// toBoth sends a request on a stream of both.
func (s *sequence) toBoth(st *stream, r *pb.WatchRequest) {
	s.rt.Logf("on stream %d: %s", slices.Index(s.streams, st), text(r))
	for _, in := range st.sides {
		if err := in.rpc.Send(r); err != nil {
			s.fatalf("%v", err)
		}
	}
}

// catchUp waits until no watcher of etcd's is behind, where a compaction could
// still meet it: one that is created after them sees its event in the round
// that takes care of them all.
func (s *sequence) catchUp() {
	if !s.past {
		return
	}
	s.past = false
	ctx, cancel := context.WithCancel(s.ctx)
	defer cancel()
	rpc, err := s.etcd.watch.Watch(ctx)
	if err != nil {
		s.fatalf("%v", err)
	}
	err = rpc.Send(&pb.WatchRequest{RequestUnion: &pb.WatchRequest_CreateRequest{CreateRequest: &pb.WatchCreateRequest{
		Key: []byte{0}, RangeEnd: []byte{0}, StartRevision: s.rev,
	}}})
	for events := 0; events == 0; {
		resp := &pb.WatchResponse{}
		if err == nil {
			resp, err = rpc.Recv()
		}
		if err != nil {
			s.fatalf("%v", err)
		}
		events = len(resp.Events)
	}
}

// watchStep does something with a watch.
func (s *sequence) watchStep() {
	if len(s.streams) == 0 || len(s.streams) < maxStreams && s.rarely("another stream") {
		st := &stream{watchers: map[int64]*watched{}}
		for i, side := range s.sides() {
			st.sides[i] = s.openInbox(side)
		}
		s.streams = append(s.streams, st)
	}
	at := between(s, "stream", 0, len(s.streams)-1)
	st := s.streams[at]
	switch s.pick("watch", 12, 5, 6, 1, 1) {
	case 0:
		if len(st.watchers) < maxWatchers {
			s.createWatch(st)
		}
	case 1:
		s.cancelWatch(st)
	case 2:
		s.progress(st)
	case 3:
		// Neither a create, a cancel nor a progress request.
		s.toBoth(st, &pb.WatchRequest{})
	case 4:
		s.settle(st, "before the end of the stream")
		for _, in := range st.sides {
			if err := in.rpc.CloseSend(); err != nil {
				s.fatalf("%v", err)
			}
		}
		s.streams = slices.Delete(s.streams, at, at+1)
	}
}

func (s *sequence) createWatch(st *stream) {
	r := s.watchRequest()
	if r.Fragment {
		for _, in := range st.sides {
			in.mu.Lock()
			in.asked = true
			in.mu.Unlock()
		}
	}
	s.toBoth(st, &pb.WatchRequest{RequestUnion: &pb.WatchRequest_CreateRequest{CreateRequest: r}})
	st.answers++
	var ids [2]int64
	for i, in := range st.sides {
		wrong := in.await(s.ctx, func() bool {
			ids[i] = in.newest
			return in.answers >= st.answers
		})
		if wrong != "" {
			s.fatalf("creating a watch: %s: %s\n%s", names[i], wrong, s.transcripts(st))
		}
	}
	if id := ids[0]; id != -1 {
		w := &watched{req: r, from: r.StartRevision}
		switch {
		case r.StartRevision == 0:
			w.from, w.next = s.rev+1, len(s.events)
		case r.StartRevision < s.compact:
			w.compacted = true
		case r.StartRevision == s.compact:
			w.expected, w.next = s.keptAtCompact(w)
		}
		s.past = s.past || w.from <= s.rev
		st.watchers[id] = w
	}
	s.settle(st, "a new watch")
}

// keptAtCompact counts the events of the compacted revision that the
// compaction has kept for w: the last of each key. It returns the place of the
// first event after that revision, too.
func (s *sequence) keptAtCompact(w *watched) (expected, next int) {
	kept := map[string]*mvccpb.Event{}
	for i, ev := range s.events {
		if ev.Kv.ModRevision <= s.compact {
			next = i + 1
		}
		if ev.Kv.ModRevision == s.compact {
			kept[string(ev.Kv.Key)] = ev
		}
	}
	for _, ev := range kept {
		if w.wants(ev) {
			expected++
		}
	}
	return expected, next
}

func (s *sequence) cancelWatch(st *stream) {
	id := s.watchID()
	if ids := slices.Sorted(maps.Keys(st.watchers)); len(ids) > 0 && !s.rarely("an unknown id") {
		id = sample(s, "id", ids)
	}
	if st.watchers[id] != nil {
		st.answers++
	}
	s.toBoth(st, &pb.WatchRequest{RequestUnion: &pb.WatchRequest_CancelRequest{CancelRequest: &pb.WatchCancelRequest{WatchId: id}}})
	delete(st.watchers, id)
	s.settle(st, "a cancel")
}

// progress asks for progress where both servers answer alike: etcd's stays
// silent for ever once a compaction has canceled a watcher.
func (s *sequence) progress(st *stream) {
	answered := len(st.watchers) > 0
	for _, w := range st.watchers {
		if w.compacted {
			return
		}
		if w.req.StartRevision > s.rev {
			answered = false
		}
	}
	s.catchUp()
	want := [2]int{}
	for i, in := range st.sides {
		want[i] = in.progresses() + 1
	}
	s.toBoth(st, &pb.WatchRequest{RequestUnion: &pb.WatchRequest_ProgressRequest{ProgressRequest: &pb.WatchProgressRequest{}}})
	if answered {
		for i, in := range st.sides {
			if wrong := in.await(s.ctx, func() bool { return in.countProgress() >= want[i] }); wrong != "" {
				s.fatalf("progress of %s: %s\n%s", names[i], wrong, s.transcripts(st))
			}
		}
	}
	s.settle(st, "progress")
}

func (in *inbox) progresses() int {
	in.mu.Lock()
	defer in.mu.Unlock()
	return in.countProgress()
}

// countProgress is progresses for callers that hold in.mu.
func (in *inbox) countProgress() int {
	n := 0
	if all := in.ids[-1]; all != nil {
		for _, line := range all.lines {
			if strings.HasPrefix(line, "progress ") {
				n++
			}
		}
	}
	return n
}

// overtaken is whether one transaction has changed a key twice at rev. Once rev
// is compacted, etcd's watches have but the last change; keelson's may have
// both, from memory.
func (s *sequence) overtaken(rev int64) bool {
	seen := map[string]bool{}
	for _, ev := range s.events {
		if ev.Kv.ModRevision == rev {
			if seen[string(ev.Kv.Key)] {
				return true
			}
			seen[string(ev.Kv.Key)] = true
		}
	}
	return false
}

func (s *sequence) watchID() int64 {
	return sample(s, "watch id", []int64{0, 0, 0, 0, 1, 2, 3, 7, -2, 1 << 62, -1 << 63})
}

func (s *sequence) watchRequest() *pb.WatchCreateRequest {
	r := &pb.WatchCreateRequest{
		Key: s.key(), RangeEnd: s.rangeEnd(), WatchId: s.watchID(),
		PrevKv: s.flip("prev_kv"), ProgressNotify: s.rarely("progress_notify"), Fragment: s.flip("fragment"),
	}
	if s.flip("everything") {
		r.Key, r.RangeEnd = []byte{0}, []byte{0}
	}
	switch s.pick("start", 3, 6, 2, 2, 1) {
	case 0:
	case 1:
		r.StartRevision = between(s, "kept revision", s.compact, s.rev)
	case 2:
		r.StartRevision = s.rev + between[int64](s, "future revision", 1, 4)
	case 3:
		r.StartRevision = s.compact - between[int64](s, "compacted revision", 1, 2)
	case 4:
		r.StartRevision = sample(s, "odd revision", []int64{-1, -1 << 63, 1<<63 - 1, 1})
	}
	if r.StartRevision == s.compact && s.overtaken(s.compact) {
		r.StartRevision++
	}
	if s.rarely("filtered") {
		r.Filters = sample(s, "filters", [][]pb.WatchCreateRequest_FilterType{
			{pb.WatchCreateRequest_NOPUT}, {pb.WatchCreateRequest_NODELETE},
			{pb.WatchCreateRequest_NODELETE, pb.WatchCreateRequest_NOPUT, pb.WatchCreateRequest_NODELETE}, {9},
		})
	}
	return proto.Clone(r).(*pb.WatchCreateRequest)
}
