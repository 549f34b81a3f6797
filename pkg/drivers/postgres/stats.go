package postgres

import "time"

// Stats are the counts of a Log since it was opened.
type Stats struct {
	MaxConns, Conns, Used int   // connections of the pool
	Opened                int64 // connections made
	Acquires              int64
	Waits                 int64 // acquires that found no free connection
	WaitTime              time.Duration
	Unnotified            int64 // appends without a notification, since the queue was full
	Listening             bool  // notifications arrive
	Lessor                bool  // see Lead
}

// Stats returns the present counts.
func (l *Log) Stats() Stats {
	s := l.pool.Stat()
	return Stats{
		MaxConns: int(s.MaxConns()), Conns: int(s.TotalConns()), Used: int(s.AcquiredConns()),
		Opened: s.NewConnsCount(), Acquires: s.AcquireCount(), Waits: s.EmptyAcquireCount(), WaitTime: s.EmptyAcquireWaitTime(),
		Unnotified: l.unheard.appends.Load(), Listening: l.listening.Load(), Lessor: l.leading.Load(),
	}
}
