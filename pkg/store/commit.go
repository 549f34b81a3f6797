package store

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"github.com/keelson-io/keelson/pkg/eventlog"
)

func answer(requests []*request, err error) {
	for _, r := range requests {
		if r.err == nil {
			r.err = err
		}
		close(r.done)
	}
}

// trimSlice is how many records are taken out of the index between two
// batches: well below a millisecond of work.
const trimSlice = 500

// commitUntil is the committer: it alone makes and publishes states.
func (s *Store) commitUntil(ctx context.Context) (err error) {
	// What a caller cancels must not reach the log: a batch is many callers'.
	background := context.WithoutCancel(ctx)
	defer func() {
		s.queue.close()
		requests, _ := s.queue.take()
		answer(requests, ErrStopped)
		close(s.queue.stopped)
	}()
	for stopping := false; ; {
		// Those answered last and those who come go first: the larger the batch,
		// the less an fsync costs each of its requests.
		runtime.Gosched()
		requests, err := s.queue.take()
		if err != nil {
			answer(requests, ErrStopped)
			return err
		}
		switch {
		case len(requests) > 0:
			if err := s.commit(background, requests); err != nil {
				return err
			}
		case stopping:
			return nil
		default:
			if err := s.follow(background); err != nil {
				return err
			}
		}
		s.trim()
		select {
		case <-s.queue.wake:
		case <-ctx.Done():
			stopping = true
			s.queue.close()
		}
	}
}

// commit evaluates requests, appends their effects as one batch, publishes the
// outcome and answers everyone. The error is final.
func (s *Store) commit(ctx context.Context, requests []*request) error {
	fence := eventlog.Position(-1)
	for idle := 0; ; {
		base := s.now().position
		ev, err := s.evaluate(ctx, requests)
		if err == nil {
			err = s.append(ctx, ev, requests, &fence)
		}
		if err == nil {
			answer(requests, nil)
			return nil
		}
		if isBehind(err) {
			cause := err
			if err = s.catchUp(ctx); err == nil {
				if s.now().position > base {
					idle = 0
				}
				if idle++; idle <= maxIdle {
					continue
				}
				err = fmt.Errorf("nothing of the batch was appended: %w", cause)
			}
		}
		return s.refuse(requests, err)
	}
}

// maxIdle is how often a batch is evaluated again on one and the same state,
// as it is when a write fault has kept it from the log.
const maxIdle = 10

// isBehind reports whether err says that the log is not as the state has it:
// the head has moved, or another instance's compaction has deleted a value.
func isBehind(err error) bool {
	return !errors.Is(err, eventlog.ErrUnknown) &&
		(errors.Is(err, eventlog.ErrStale) || errors.Is(err, eventlog.ErrCompacted))
}

// refuse answers requests whose batch was not appended, or may not have been,
// and returns err if it is final.
func (s *Store) refuse(requests []*request, err error) error {
	for _, r := range requests {
		r.err = nil // an outcome evaluated on a state that never was
	}
	final := isFinal(err)
	switch {
	case errors.Is(err, eventlog.ErrUnknown):
		answer(requests, fmt.Errorf("%w: %w", ErrUnknownOutcome, err))
	case final:
		answer(requests, fmt.Errorf("%w: %w", ErrStopped, err))
	default:
		s.opt.Logger.WithError(err).Warn("the log refused a batch of writes; its clients get Unavailable")
		answer(requests, fmt.Errorf("%w: %w", ErrUnavailable, err))
	}
	if final {
		return err
	}
	return nil
}

// maxReads is how many values the committer reads from the log for one request
// at a time while the others wait, and maxRounds how many times: after each
// the request is evaluated from its beginning.
const (
	maxReads  = 32
	maxRounds = 4
)

// evaluate runs requests on a copy of the newest state. A request that fails
// does so alone.
func (s *Store) evaluate(ctx context.Context, requests []*request) (*evaluation, error) {
	ev := s.newEvaluation(quota{s.opt.QuotaBytes, s.log.Size().InUse, s.opt.MemberID})
	ev.expect(len(requests))
	for _, r := range requests {
		first := len(ev.fills)
		for round := 0; ; round++ {
			ev.lent = r.read
			ev.begin()
			if r.err = r.eval(ev); r.err == nil {
				break
			}
			var need *needValues
			if !errors.As(r.err, &need) || (len(need.seqs) > maxReads || round == maxRounds) && !r.final {
				break // where many are needed, submit reads them
			}
			read, err := s.values.read(ctx, need.seqs)
			if isDamage(err) {
				r.err = err
				break
			}
			if err != nil {
				return nil, err
			}
			r.learn(need.seqs, read)
		}
		r.fills = ev.fills[first:len(ev.fills):len(ev.fills)]
		if r.err != nil && ev.sub > 0 {
			panic(fmt.Sprintf("store: a request failed after it had changed something: %v", r.err))
		}
	}
	return ev, nil
}

// append makes the batch of ev durable and publishes its state. Values that
// responses and events wait for are read from the log meanwhile. For fence see
// appendRecords.
func (s *Store) append(ctx context.Context, ev *evaluation, requests []*request, fence *eventlog.Position) error {
	missing := ev.missing()
	read := make(chan error, 1)
	if len(missing) > 0 {
		go func() { read <- s.values.fill(ctx, missing) }()
	} else {
		read <- nil
	}

	err := s.appendRecords(ctx, ev, len(requests), fence)
	readErr := <-read
	if err != nil {
		return err
	}
	if len(ev.records) == 0 {
		return s.passDamage(ctx, ev, requests, missing, readErr)
	}
	for try := 0; errors.Is(readErr, ErrUnavailable) && try < fillTries; try++ {
		time.Sleep(resolvePause << try)
		readErr = s.values.fill(ctx, missing)
	}
	if readErr = s.passDamage(ctx, ev, requests, missing, readErr); readErr != nil {
		ev.dropUnread()
		// The batch is durable, and nobody can be told what it did.
		err = fmt.Errorf("%w: reading values: %w", eventlog.ErrUnknown, readErr)
	}
	s.publish(ev)
	return err
}

// fillTries is how often the values that a durable batch needs are read again:
// giving up takes the PrevKv off events, which some watchers take for an error.
const fillTries = 5

// passDamage takes err, with which filling missing has ended. If a value is
// damaged, it fails the requests whose responses wait for it, takes it off the
// events, and returns what else is wrong: one damaged record must not keep
// everybody from writing.
func (s *Store) passDamage(ctx context.Context, ev *evaluation, requests []*request, missing []fill, err error) error {
	if !isDamage(err) {
		return err
	}
	damaged, err := s.values.fillEach(ctx, missing)
	if err != nil {
		return err
	}
	for _, event := range ev.events {
		delete(damaged, event.PrevKv)
	}
	ev.dropUnread()
	for _, r := range requests {
		for _, f := range r.fills {
			if damage := damaged[f.kv]; damage != nil && r.err == nil {
				r.err = damage
			}
		}
	}
	return nil
}

// dropUnread takes the PrevKv off events whose value could not be read: none is
// what a watcher gets for a compacted one, too, where an empty one would lie.
func (ev *evaluation) dropUnread() {
	for _, event := range ev.events {
		if event.PrevKv != nil && event.PrevKv.Value == nil {
			event.PrevKv = nil
		}
	}
}

// maxPrevBytes bounds the previous values that the events of one batch hold. A
// request of a few bytes may overwrite or delete everything there is, and most
// watchers do not want to know what it was: beyond the bound the batch has no
// events, and watchers read what each of them wants from the history.
const maxPrevBytes = 64 << 20

// missing fills what is in memory and returns the rest.
func (ev *evaluation) missing() []fill {
	ev.unsaid = ev.prevBytes > maxPrevBytes
	waiting := [][]fill{ev.fills, ev.prevs}
	if ev.unsaid {
		waiting = waiting[:1]
	}
	var rest []fill
	for _, fills := range waiting {
		for _, f := range fills {
			if value, ok := ev.value(f.seq); ok {
				f.kv.Value = value
			} else {
				rest = append(rest, f)
			}
		}
	}
	return rest
}

// appendRecords appends the batch of ev and resolves an unknown outcome. A
// batch without records is a read and needs a fence of its own: its requests
// were evaluated on a state that may be an old one. *fence is a position that
// the head had after the requests had come, or -1 if it was not asked for yet:
// it is asked for once, or other instances' writes could go on for ever.
func (s *Store) appendRecords(ctx context.Context, ev *evaluation, requests int, fence *eventlog.Position) error {
	if len(ev.records) == 0 {
		if *fence < 0 {
			head, err := s.log.Head(ctx)
			if err != nil {
				return err
			}
			*fence = head
		}
		if ev.base < *fence {
			return eventlog.ErrStale
		}
		return nil
	}
	batch := &eventlog.Batch{ID: eventlog.NewBatchID(), Base: ev.base, Records: ev.records}
	start := time.Now()
	err := s.log.Append(ctx, batch)
	if errors.Is(err, eventlog.ErrUnknown) && !errors.Is(err, eventlog.ErrFailed) {
		s.opt.Logger.WithError(err).Warn("the log did not say whether a batch is durable; looking it up")
		err = s.resolve(ctx, batch)
	}
	s.opt.OnCommit(requests, len(ev.records), time.Since(start))
	return err
}

// The look-up of an unknown batch is repeated this often, this far apart, and
// more at each try.
const (
	resolveTries = 10
	resolvePause = 10 * time.Millisecond
)

// resolve finds out whether batch, whose Append gave ErrUnknown, is there: nil
// if it is, ErrStale if it is not and may be evaluated again, and ErrUnknown
// if the log does not answer.
func (s *Store) resolve(ctx context.Context, batch *eventlog.Batch) error {
	var err error
	for try := range resolveTries {
		var found []eventlog.Batch
		found, err = s.log.Tail(ctx, batch.Base, 1)
		switch {
		case err == nil && len(found) > 0 && found[0].ID == batch.ID:
			return nil
		case err == nil:
			return eventlog.ErrStale
		case isFinal(err):
			return fmt.Errorf("%w: %w", eventlog.ErrUnknown, err)
		}
		time.Sleep(resolvePause << try)
	}
	return fmt.Errorf("%w: looking it up: %w", eventlog.ErrUnknown, err)
}

// publish makes the state of an appended batch visible and tells the world.
func (s *Store) publish(ev *evaluation) {
	applied := Applied{Revision: ev.state.revision, Events: ev.events, NoPrev: ev.noPrev && len(ev.superseded) > 0}
	if ev.unsaid {
		applied.Events = nil
	}
	for i := range ev.records {
		switch r := &ev.records[i]; r.Kind {
		case eventlog.KindPut:
			s.values.cache.put(r.Seq, r.Value)
		case eventlog.KindLeaseGrant:
			if g, ok := ev.state.leases.Get(r.Lease); ok && g.seq == r.Seq {
				applied.Granted = append(applied.Granted, Lease{ID: r.Lease, TTL: r.TTL})
			}
		case eventlog.KindLeaseRevoke:
			if _, ok := ev.state.leases.Get(r.Lease); !ok {
				applied.Revoked = append(applied.Revoked, r.Lease)
			}
		case eventlog.KindAlarmRaise, eventlog.KindAlarmDisarm:
			s.logAlarm(r.Alarm, r.Kind == eventlog.KindAlarmRaise)
		}
	}
	for _, seq := range ev.superseded {
		s.values.cache.drop(seq)
	}
	told := s.install(ev.state)
	s.opt.OnApply(applied)
	close(told)
}

// logAlarm tells the operator of an alarm that was raised or taken back.
func (s *Store) logAlarm(kind int32, raised bool) {
	log := s.opt.Logger.WithField("alarm", pb.AlarmType(kind).String())
	switch {
	case !raised:
		log.Info("an alarm was disarmed")
	case pb.AlarmType(kind) == pb.AlarmType_NOSPACE:
		log.WithField("quota", s.opt.QuotaBytes).Warn("the quota is used up and writes are refused: compact, or delete keys and compact, then disarm the alarm")
	default:
		log.Warn("an alarm was raised")
	}
}

// install makes st the state that readers see. The result is to be closed once
// OnApply was told what it needs to know of it.
func (s *Store) install(st state) (told chan struct{}) {
	told = make(chan struct{})
	old := s.published.Swap(&published{state: st, told: told, next: make(chan struct{})})
	close(old.next)
	return told
}

// follow catches up if another instance has written.
func (s *Store) follow(ctx context.Context) error {
	err := s.catchUp(ctx)
	if err == nil || isFinal(err) {
		return err
	}
	s.opt.Logger.WithError(err).Warn("cannot follow the log; will try again in a second")
	time.AfterFunc(time.Second, s.queue.wakeUp) // fences may be waiting
	return nil
}

// isFinal reports whether the log is not to be used any more after err.
func isFinal(err error) bool {
	return errors.Is(err, eventlog.ErrFailed) || errors.Is(err, eventlog.ErrCorrupt) || errors.Is(err, eventlog.ErrClosed)
}

// tailRecords is about how many records catching up reads at a time.
const tailRecords = 1000

// catchUp applies and publishes what others have written. Where their
// compaction has deleted some of it, the events in between are lost to this
// store, and only a new one, loaded from the log, can go on: a final error.
func (s *Store) catchUp(ctx context.Context) error {
	for {
		batches, err := s.log.Tail(ctx, s.now().position, tailRecords)
		if errors.Is(err, eventlog.ErrCompacted) {
			return fmt.Errorf("%w: compaction has deleted what this store has not read yet: %w", eventlog.ErrFailed, err)
		}
		if err != nil || len(batches) == 0 {
			return err
		}
		ev := s.newEvaluation(quota{})
		for i := range batches {
			for j := range batches[i].Records {
				if err := ev.replay(&batches[i].Records[j]); err != nil {
					return err
				}
			}
		}
		missing := ev.missing()
		err = s.values.fill(ctx, missing)
		if errors.Is(err, ErrCompacted) {
			ev.dropUnread()
		} else if err = s.passDamage(ctx, ev, nil, missing, err); err != nil {
			return err
		}
		s.publish(ev)
	}
}

// newEvaluation begins a batch on the newest state.
func (s *Store) newEvaluation(q quota) *evaluation {
	ev := newEvaluation(s.now(), s.values.cache.get, q)
	ev.noPrev = !s.opt.WantsPrev()
	return ev
}

// replay applies a record that another instance has evaluated.
func (ev *evaluation) replay(r *eventlog.Record) error {
	var prev *entry
	if r.Kind == eventlog.KindPut || r.Kind == eventlog.KindDelete {
		prev, _ = ev.living(stringOf(r.Key))
	}
	ev.records = append(ev.records, *r)
	if err := ev.state.apply(r); err != nil {
		return err
	}
	if r.Kind == eventlog.KindPut || r.Kind == eventlog.KindDelete {
		ev.addEvent(r, prev)
	}
	return nil
}
