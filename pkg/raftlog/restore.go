package raftlog

import (
	"errors"
	"os"
	"path/filepath"

	"github.com/keelson-io/keelson/pkg/durable"
	"github.com/keelson-io/keelson/pkg/eventlog"
)

// Forget makes data directory dir that of no node any more. Its database, which
// is not that of a node alone, must be gone, or be replaced before it is used.
func Forget(dir string) error { return os.RemoveAll(filepath.Join(dir, raftDir)) }

// Begin makes data directory dir, which has a database that ends at position
// and is no node's, that of node id of a new cluster with these members. Every
// one of them must have the same database: what id.Cluster is made of tells
// that, so that nodes with other data are strangers to each other.
func Begin(dir string, position eventlog.Position, id Identity, members Members) error {
	final := filepath.Join(dir, raftDir)
	part := final + ".new"
	if err := os.RemoveAll(part); err != nil {
		return err
	}
	d, err := openDisk(part, id, members)
	if err != nil {
		return err
	}
	begin := markFile{Members: members, Position: &position}
	if err := errors.Join(begin.write(part, firstIndex), d.close()); err != nil {
		return err
	}
	return errors.Join(os.Rename(part, final), durable.Sync(dir))
}
