// Package kine reads what kine has kept for a Kubernetes cluster: the table of
// an SQLite file as k3s leaves it, of PostgreSQL, or of MySQL and MariaDB.
//
// # The table
//
// A row is a version of a key and its id is the revision, so revisions are kept:
// resource versions that clients have seen go on to mean the same.
//
//	id   name             created deleted create_revision prev_revision lease value
//	 1   compact_rev_key     1       0          0               7         0          kine's own: compacted up to 7
//	 8   /registry/a         0       0          5               6         0    …     the fourth version, two of which are left
//	 9   gap-9               0       1          0               0         0          nothing: an insert that failed
//	10   /registry/e         1       0          0               0        60    …     created, vanishes after 60 s
//	11   /registry/a         0       1          0               8         0          deleted
//
// What differs from etcd, and what becomes of it:
//
//   - A revision is one change, so every sub-revision is 0. The revision of a row
//     that is not there, or only fills a gap, was never used.
//   - Compaction removes what etcd's would remove. Rows that an interrupted or old
//     one has left are passed over: of what is at or below the compact revision
//     each key keeps its newest version, if that is not a deletion.
//   - There are no versions of keys. They are counted from the rows that are there:
//     from 1 where the creation is there, and else from 2, so that a 1 always says
//     created; the same table gives the same numbers each time.
//   - A lease is a number of seconds for which a key lives after it was written.
//     It becomes a lease of that id and that TTL, shared by its keys: they vanish
//     that long after the import at the latest, as they would after a start of kine.
//   - kube-apiserver's compact_rev_key is kept under another name, with its version
//     in its value. It gets both back; kine's own row of that name is left out.
package kine
