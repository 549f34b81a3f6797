package raftlog

import (
	"context"

	"github.com/keelson-io/keelson/pkg/eventlog"
)

// Scan implements eventlog.Log, on what this node has. What the caller has seen
// is in the database before it is read.
func (l *Log) Scan(ctx context.Context, begin func(eventlog.Position) (int64, error)) (eventlog.Scan, error) {
	if err := l.check(); err != nil {
		return nil, err
	}
	return l.local.Scan(ctx, func(head eventlog.Position) (int64, error) {
		through, err := begin(head)
		if err == nil {
			err = l.flush(ctx)
		}
		return through, err
	})
}
