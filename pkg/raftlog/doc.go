// Package raftlog replicates the SQLite log over Raft: one log, of which
// every node has a copy, that goes on while a majority of the nodes does.
//
//	Append ─▶ propose ─▶ raft loop ─┬─▶ append: WAL, fsync ─┐   (beside each other)
//	   ▲                    ▲       └─▶ peers, who do so ───┤
//	   │                    └── acknowledgements ◀──────────┘
//	   └── outcome ◀── apply: memory ◀── committed entries
//	                     └──▶ SQLite, later
//
// An entry is one batch. It is compared with the head when it is applied, by
// every node in the same way: a batch whose base is not the head any more
// changes nothing anywhere. For the same reason applying an entry twice does
// no harm, so that nothing has to be known about how far the database was
// when a node stopped, but that it had everything up to the last mark.
//
// What is applied is in memory first, and in the database a little later
// (writeBehind): a reader of the log sees no difference.
//
// A mark is an index in the Raft log up to which the database itself is
// durable. It is a snapshot record of the WAL; what is before it may be
// deleted, and a restart reads what is after it. The database is written
// without fsync between two checkpoints: the WAL is what makes a batch
// durable, on a majority of the nodes, before Append returns.
//
// Only the leader appends. A reader on any node asks the leader which index
// is committed (ReadIndex, §6.4 of the Raft dissertation; the leader confirms
// with a majority that it still is one) and waits until it is applied here.
package raftlog
