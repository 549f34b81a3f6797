// Package sqlite keeps a log in one SQLite file (modernc.org/sqlite, no cgo):
// the driver of a single node, and the state machine under the Raft log.
//
//	keelson.db       the database: table log, one row for each record
//	keelson.db-wal   SQLite's write-ahead log; part of the database
//	keelson.db-shm   its index; rebuilt when it is missing
//	keelson.db.lock  flock; says which process has the log open
//
// # Connections
//
//	Append, Compact, Defragment, vacuumLoop ─ token ─▶ writer   BEGIN IMMEDIATE … COMMIT
//	Tail, Values, Scan ──────────────────────────────▶ readers  short transactions
//	checkpointLoop ──────────────────────────────────▶ janitor  PRAGMA wal_checkpoint
//	Load ────────────────────────────────────────────▶ the file, if the WAL has no more: tree.go
//	Copy ────────────────────────────────────────────▶ the file, beside all of them: copy.go
//	Importer ────────────────────────────────────────▶ a file of its own: import_tree.go
//
// A token, handed over in the order of asking, makes for one writer; since a
// lock keeps other processes out, the head is known and nobody ever meets a
// busy database. Connections are spoken to through database/sql/driver.
//
// # Durability
//
// WAL mode, synchronous=FULL: COMMIT returns after the fsync of the WAL, and a
// batch is one transaction. A crash leaves
//
//	in Append          the batch whole or not at all; SQLite replays the WAL
//	                   up to the last commit whose checksums hold
//	in Compact         some records deleted, and kept saying which; beside
//	                   Appends it works in their transactions
//	in a checkpoint    the WAL, from which it is repeated
//	in Open, creating  keelson.db.new, which the next Open throws away
//
// An error of the disk is final: the kernel may have dropped what it could not
// write, so that a retried fsync would lie. Every later call gives ErrFailed, no
// checkpoint follows, not even in Close, and the next Open writes the WAL anew
// before it trusts what it reads there. An error of COMMIT itself leaves the
// fate of its batch open (ErrUnknown); one before it does not.
//
// # Integrity
//
// Each record's header and key, its value, and the id of each batch have a
// checksum that covers the seq too, and the row of kept has one. Load verifies
// headers, Tail and Values all they read. Load also verifies that seqs are
// dense above the highest deleted one and that the number of rows is that of
// records less deletions; a lost or foreign row anywhere is ErrCorrupt.
//
// Open verifies the WAL before SQLite does: a log that a power cut has torn
// ends there, one that is damaged is ErrCorrupt; wal.go says how the two are
// told apart. It takes 0.1 s for 64 MiB.
//
// # Why this table
//
// Measured with BenchmarkSchema* on 2 cores with an fsync of 0.25 ms: values
// of 1 KiB; of WAL written for a commit, what a new file grows by.
//
//	                          batch 1       batch 100  batch 1000  load 100k
//	                       rows/s  KiB/commit  rows/s     rows/s
//	plain, page 4096         4.7k     8.1       116k       143k      103 ms
//	plain, page 8192         5.1k    11.5       134k       180k       82 ms
//	plain, page 16384        5.0k    19.5       136k       203k       81 ms
//	no auto_vacuum, 4096     3.8k     6.7       125k       156k      105 ms
//	values apart, 4096       4.4k    12.3       103k       123k       57 ms
//	WITHOUT ROWID, 4096      4.2k    21.8        46k        46k      180 ms
//	index on key, 4096       4.2k    13.5        50k        73k      103 ms
//
// The plain rowid table it is. Pages of 4096 bytes write least for a small
// commit, which is what wears out an SD card, and are the fastest for values
// of 5 KB, as pods are (52k rows/s in batches of 100, against 40k with 8192).
// INSERTs of 16 or 64 rows gain 13 % in batches of 1000 and nothing below.
// Values in a table of their own load faster but cost half as much again for a
// small commit. auto_vacuum=INCREMENTAL costs 1.4 KiB a commit and gives space
// back in small steps, where VACUUM needs the room twice and stops writes.
//
// The driver itself, which reuses the space of its WAL: 6.8k rows/s one by
// one, 136k in batches of 100, 180k in batches of 1000; Load takes 0.09 s for
// 100,000 records of 1 KiB and 0.63 s for a million; Values 8 µs for one and
// 3.4 µs each for many; Tail 2.2 µs a record. Compact deletes 100,000 (every
// second record) to 250,000 records/s (all) when nothing is written.
//
// An Append beside it takes some of the deleting along. On a machine with much
// other work one took 0.23 ms (p50) and 2.8 ms (p99) then, alone 0.12 and
// 1.6 ms, while 200,000 records were deleted in 3 s. On a disk whose commits
// take 5.5 ms, fsyncs of Compact's own made 11.5 ms of them.
package sqlite
