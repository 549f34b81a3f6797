package postgres

import (
	"context"
	"errors"
	"math"

	"github.com/keelson-io/keelson/pkg/eventlog"
)

// FailAppend makes the next Append fail, after it was done if persisted.
func (l *Log) FailAppend(persisted bool) {
	l.onAppend = func(send func() error) error {
		l.onAppend = nil
		if persisted {
			if err := send(); err != nil {
				return err
			}
		}
		return errors.New("injected fault")
	}
}

// DelayAppend is an Append whose connection breaks before its statement has
// reached the server; deliver lets it arrive.
func (l *Log) DelayAppend(batch *eventlog.Batch) (deliver func() (appended bool, err error), err error) {
	base, err := l.base(context.Background(), batch.Base)
	if err != nil {
		return nil, err
	}
	a := newAppend(batch, base)
	l.mu.Lock()
	defer l.mu.Unlock()
	a.args[2] = l.fence
	l.doubt = true
	return func() (bool, error) { return l.sendAppend(context.Background(), a) }, nil
}

// Report tells the other instances how far this one has read.
func (l *Log) Report() error { return l.report(context.Background()) }

// ReaderTerm is for how long a silent instance is waited for.
const ReaderTerm = readerTerm

// Claim makes this instance the lessor.
func (l *Log) Claim() (bool, error) { return l.claim(context.Background(), true) }

// Mute says whether appends are made without notifications.
func (l *Log) Mute(on bool) {
	var until int64
	if on {
		until = math.MaxInt64
	}
	l.unheard.until.Store(until)
}
