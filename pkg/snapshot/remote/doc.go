// Package remote moves data out of and into a server that speaks etcd's API
// and is running: etcd, keelson, a proxy before one, or kine.
//
// [Fetch] gets the file that Maintenance.Snapshot streams, which has everything.
// Where that is not to be had, [Open] reads the keys as of one revision, page by
// page: their revisions are those that they have there, but the history before
// and the order of changes within one transaction are not to be seen. [Sink]
// writes keys and leases into a server. It gives them new revisions.
package remote
