// Package eventlog is the contract between keelson's store and the drivers
// that make it durable: a log that can only be appended to at its head.
//
// Everything a client can change is a [Record]: a put, a delete, a lease
// granted or revoked, a compaction, an alarm. Records travel in a [Batch],
// which becomes durable as a whole or not at all. Three numbers order them:
//
//	Position  the log's own sequence number, +1 for each appended batch
//	Seq       the record's sequence number, +1 for each record, across batches
//	Revision  etcd's (main, sub); a lease grant moves Position and Seq only
//
//	position      7          8              9
//	           ┌──────┬──────────────┬─────────────┐
//	seq        │  21  │  22   23  24 │  25     26  │  ← head
//	revision   │ 14.0 │ 15.0 15.1 16 │ lease  17.0 │
//	           └──────┴──────────────┴─────────────┘
//
// Invariant: positions and seqs of appended batches are dense. Physical
// compaction leaves holes in seq, always below the newest compaction mark.
//
// Package logtest holds the suite that every driver passes; memlog is the
// reference driver.
package eventlog

import (
	"context"
	"crypto/rand"
	"fmt"
)

// Position is the sequence number of a batch. An empty log is at 0.
type Position int64

// Kind says what a record does. The values are part of the durable format.
type Kind uint8

// The kinds of records.
const (
	// KindPut sets Key to Value with CreateRevision, Version and Lease.
	KindPut Kind = 1
	// KindDelete is the tombstone of Key.
	KindDelete Kind = 2
	// KindLeaseGrant creates lease Lease with TTL.
	KindLeaseGrant Kind = 3
	// KindLeaseRevoke removes lease Lease. The deletes of its keys are
	// records of their own in the same batch.
	KindLeaseRevoke Kind = 4
	// KindCompact marks revision Revision.Main as compacted: every reader
	// hides what it frees from this position on.
	KindCompact Kind = 5
	// KindAlarmRaise raises alarm Alarm for member Member.
	KindAlarmRaise Kind = 6
	// KindAlarmDisarm takes alarm Alarm of member Member back.
	KindAlarmDisarm Kind = 7
)

// String returns the kind's name as it stands in messages.
func (k Kind) String() string {
	switch k {
	case KindPut:
		return "put"
	case KindDelete:
		return "delete"
	case KindLeaseGrant:
		return "lease-grant"
	case KindLeaseRevoke:
		return "lease-revoke"
	case KindCompact:
		return "compact"
	case KindAlarmRaise:
		return "alarm-raise"
	case KindAlarmDisarm:
		return "alarm-disarm"
	}
	return fmt.Sprintf("kind(%d)", uint8(k))
}

// Revision is etcd's revision: Main counts the changing requests, Sub the
// changes within one request, from 0.
type Revision struct {
	Main int64
	Sub  int64
}

// Less reports whether r is before other.
func (r Revision) Less(other Revision) bool {
	return r.Main < other.Main || r.Main == other.Main && r.Sub < other.Sub
}

// String returns "main.sub".
func (r Revision) String() string { return fmt.Sprintf("%d.%d", r.Main, r.Sub) }

// Record is one durable change. Which fields mean something depends on Kind;
// the others are zero.
type Record struct {
	Seq      int64
	Position Position
	Kind     Kind

	// Revision of a put or delete; for KindCompact, Main is the compacted
	// revision.
	Revision Revision

	Key   []byte
	Value []byte // KindPut only; never nil there once read back, but maybe empty

	ValueBytes int // the length of Value where Load leaves it out; 0 elsewhere

	CreateRevision int64 // KindPut: main revision that created the key
	Version        int64 // KindPut: changes since creation, from 1
	Lease          int64 // KindPut: the attached lease or 0; lease kinds: the lease
	TTL            int64 // KindLeaseGrant: seconds
	Member         uint64
	Alarm          int32 // alarm kinds: the number of etcdserverpb.AlarmType
}

// BatchID identifies one attempt to append. It is drawn at random, so that
// after ErrUnknown its author can tell its own batch from another's.
type BatchID [16]byte

// NewBatchID draws a random id.
func NewBatchID() BatchID {
	var id BatchID
	_, _ = rand.Read(id[:]) // never fails (crypto/rand)
	return id
}

// Batch is the unit of durability and of order: the effects of many requests
// committed together.
type Batch struct {
	ID BatchID
	// Base is the position the batch was evaluated on. The batch's own
	// position, and that of all its records, is Base+1.
	Base Position
	// Records is never empty. Seqs are dense and continue those of Base.
	Records []Record
}

// Position returns the position the batch has once it is appended.
func (b *Batch) Position() Position { return b.Base + 1 }

// Check refuses a batch that would break a log's invariants after the record
// headSeq.
func (b *Batch) Check(headSeq int64) error {
	if len(b.Records) == 0 {
		return fmt.Errorf("append at %d: the batch is empty", b.Base)
	}
	for i := range b.Records {
		r := &b.Records[i]
		if want := headSeq + 1 + int64(i); r.Seq != want || r.Position != b.Position() {
			return fmt.Errorf("append at %d: record %d of position %d where %d of position %d belongs",
				b.Base, r.Seq, r.Position, want, b.Position())
		}
		if r.Kind != KindPut && len(r.Value) > 0 {
			return fmt.Errorf("append at %d: the %v record %d has a value", b.Base, r.Kind, r.Seq)
		}
	}
	return nil
}

// Head is the newest state of a log that does not depend on which records
// compaction has left.
type Head struct {
	Position Position
	Seq      int64 // of the newest record ever appended
	Revision int64 // newest main revision ever appended; 0 when there was none
}

// Size says how much room a log takes, in bytes.
type Size struct {
	Total int64 // allocated, as the operating system or database sees it
	InUse int64 // Total less what Defragment could give back
}

// Scan shows the records of a log up to some seq, none of which is deleted
// until Close. It is used by one goroutine.
type Scan interface {
	// Records calls fn with every record there is, in order of Seq, with its
	// value, some of them at a time: about ScanBytes, as far as one value
	// allows. They are valid until fn returns. An error of fn ends it and is
	// returned. A wrong checksum is ErrCorrupt. It may be called again unless it
	// has failed.
	Records(ctx context.Context, fn func([]Record) error) error

	// Close lets compaction go on. Later calls do nothing.
	Close() error
}

// ScanBytes is how much of keys and values a Scan reads at a time.
const ScanBytes = 1 << 20

// Log is a durable log of batches with compare-and-append. Implementations
// are safe for concurrent use unless a method says otherwise. The context of
// a method bounds waiting; none of the methods leaves half an effect behind
// when it ends early.
//
// Errors wrap the sentinels of errors.go. ErrFailed and ErrCorrupt are final:
// the caller must stop using the log, and should end the process.
type Log interface {
	// Load calls fn for every record that compaction has left, in order of
	// Seq, with ValueBytes instead of its Value (which is nil even for puts),
	// and returns the head. It is called once, before any other method. The Record and its
	// Key are fn's to keep. An error of fn ends the load and is returned. A
	// missing record that compaction did not take, or a wrong checksum, is
	// ErrCorrupt.
	Load(ctx context.Context, fn func(*Record) error) (Head, error)

	// Head returns the position of the newest batch, whoever appended it. It
	// is the fence of linearizable reads: an Append that returned nil
	// anywhere before Head was called is at or below the result. Calls that
	// overlap may share one answer whose work began after they did.
	Head(ctx context.Context) (Position, error)

	// Append makes batch durable at Base+1 if the head is still at Base. At
	// most one Append is under way per Log. When it returns
	//
	//	nil         the batch is durable: it survives a power cut
	//	ErrStale    the head is not at Base; nothing of the batch is there
	//	ErrUnknown  the batch is there whole or not at all; Tail(Base) tells
	//	            once the log answers again
	//	other       nothing of the batch is there or ever will be
	//
	// The log keeps no reference to the batch.
	Append(ctx context.Context, batch *Batch) error

	// Tail returns whole batches after position after, in order, with values,
	// from whoever wrote them: at least one if there is any, and no more once
	// limit records are reached. None left is an empty result. ErrCompacted
	// means that compaction took a record after that position: load anew.
	Tail(ctx context.Context, after Position, limit int) ([]Batch, error)

	// Values returns the values of the records with these seqs, in their
	// order. A record that is not there is ErrCompacted; a value that does
	// not match its checksum is ErrCorrupt. The result is the caller's.
	Values(ctx context.Context, seqs []int64) ([][]byte, error)

	// Compact deletes the records with these seqs physically; unknown ones
	// are passed over, so that a cut-off compaction may be repeated. The
	// caller names only records below the newest KindCompact record. The
	// head does not move. What it frees is reused; it returns when the
	// deletion is durable or would be repeated after a crash. It runs in
	// small steps beside Append.
	Compact(ctx context.Context, seqs []int64) error

	// Scan begins to read the whole log beside Append. Once nothing is
	// deleted any more, it calls begin, which says up to which seq records are
	// wanted. All that was deleted before was freed by compactions at or before
	// position head, so that one who has read up to there knows what is left.
	// Until the Scan is closed Compact and Defragment may wait; a second Scan
	// does not, unless Scans have held one of those up for minutes, or there are
	// several already. What others delete of a shared log is still shown.
	Scan(ctx context.Context, begin func(head Position) (through int64, err error)) (Scan, error)

	// Size returns the space taken. It is cheap enough to call for every
	// batch.
	Size() Size

	// Defragment gives freed space back to the operating system or database.
	// Append may wait for it.
	Defragment(ctx context.Context) error

	// Close releases everything. What was acknowledged stays durable. Later
	// calls give ErrClosed.
	Close() error
}
