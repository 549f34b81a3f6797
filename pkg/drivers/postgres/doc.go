// Package postgres keeps a log in a schema of a PostgreSQL database (pgx, with
// a pool of its own), which several instances share: the database is what
// replicates and fails over, and keelson adds no consensus on top of it.
//
//	log      one row for each record, by seq; as in package sqlite
//	head     one row: the newest position, seq, revision and batch id; every
//	         Append changes it
//	kept     one row: what compaction has deleted
//	lessor   one row: which instance expires leases
//	renewal  what it must see of leases, and what it has decided
//	deadline what that instance tells the others of leases, to show it
//	name     what tells the data from any other, for its backups
//	reader   one row for each instance: how far it has read
//	version  one row: that of the schema
//	live     a view: the keys, for people
//
// # Append
//
// One statement compares and appends: it changes the head row where position,
// batch id and fence are those the batch was evaluated with, and inserts the
// records if that found a row. Being a statement outside a transaction block
// it is its own transaction, so that one round trip makes a batch durable.
//
// Appenders of all instances are ordered by the lock of the head row. In READ
// COMMITTED the one that waited looks at the row again, as the other has left
// it, and finds that position has moved; in stricter modes, and where other
// databases work alike, the server reports a serialization failure. Either is
// ErrStale. Since the head says what the next position and seq are, both are
// dense in the order of the commits.
//
// # An unknown commit
//
// When the connection breaks, the statement may have been committed, or lost,
// or it may still be under way, in a socket's buffer or waiting for the lock.
// So that Tail does not say "not there" of a batch that arrives later, the
// next Tail first raises the fence in the head row (settle): that waits for a
// statement which has the lock, and whatever comes later compares with a fence
// that is gone. Appends of other instances meet the new fence, too, take it
// over and go on.
//
// # Reads
//
// Head is one query for all callers that wait, begun after they came. It
// refuses a read-only server: a standby would answer with the past. Load reads
// everything from one snapshot, in pages.
//
// # Lost commits
//
// A failover may lose commits that were acknowledged, if the standby was
// behind. Each Head, Append and Tail compares what it finds with what this
// process has seen: a head behind it, or another batch id at its place, ends
// the log with ErrLost. Before that it lets the revision jump past all that
// clients can have seen and marks what is before as compacted, so that they
// list anew. A new epoch in the head row ends the other instances' logs.
//
// Reopen gives a new log that remembers what the old one has seen. Before its
// Load reads anything it compares, under the lock of the head row, and makes
// up for a jump that has failed.
//
// # Leases
//
// The instance whose name is in the lessor's row keeps the deadlines, and
// another may take the row when its time is over. ExpireLeases decides in one
// statement that also locks the row (FOR SHARE), so that nobody takes it before
// the decision is there to be seen; who takes it keeps to what was decided, and
// so does everybody who renews. An instance that wakes up late decides nothing.
//
// # Compaction
//
// Every instance deletes what its store has freed; whoever is first counts.
// None deletes a record that another instance has not read, for as long as
// that one reports (reader). A Scan is one state of the database, seen while the
// row that every Compact changes is locked.
//
// # Durability
//
// That of the database: Open refuses synchronous_commit=off. A batch survives
// the loss of the primary only if the standby is synchronous.
//
// # Time
//
// Every call tries until Options.Timeout is over, across lost connections and
// restarts of the server, and then gives ErrUnavailable; none of it is final.
// Append tries again only what certainly was not done.
//
// # Measured
//
// With the benchmarks of this package: PostgreSQL 15 on the same 2 cores, over
// a unix socket, an fsync of 0.25 ms, values of 1 KiB. 3.6k rows/s one by one,
// 76k in batches of 100, 114k in batches of 1000. Head takes 60 µs, Load
// 0.13 s for 100,000 records; Values 0.1 ms for one and 3.6 µs each for many;
// Tail 3.4 µs a record.
//
// Statements that join head and kept name the one row of each by its key:
// otherwise the planner takes tables without statistics for large ones and
// compiles the query (jit), which takes half a second.
package postgres
