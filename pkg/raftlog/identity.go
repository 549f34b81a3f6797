package raftlog

import (
	"cmp"
	"crypto/sha1" //nolint:gosec // names, not secrets: etcd's ids are made so
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/keelson-io/keelson/pkg/durable"
	"github.com/keelson-io/keelson/pkg/eventlog"
)

// Identity names a node and its cluster. It stands in a file of its own and at
// the head of each file of the WAL, so that one node's data is not taken for
// another's.
type Identity struct {
	Cluster uint64 `json:"cluster"`
	Node    uint64 `json:"node"`
}

const identityFile = "node.json"

// Identify returns who the node in data directory dir is; false if it has not
// been part of a cluster.
func Identify(dir string) (Identity, bool, error) {
	var id Identity
	path := filepath.Join(dir, raftDir, identityFile)
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return id, false, nil
	}
	if err != nil {
		return id, false, err
	}
	if err := json.Unmarshal(data, &id); err != nil || id.Cluster == 0 || id.Node == 0 {
		return id, false, fmt.Errorf("%w: %s does not say who the node is: %w", eventlog.ErrCorrupt, path, err)
	}
	return id, true, nil
}

// check makes sure that dir, that of the Raft log, is id's, and says so in it
// if it is nobody's.
func (id Identity) check(dir string) error {
	found, known, err := Identify(filepath.Dir(dir))
	if err != nil {
		return err
	}
	if known && found != id {
		return fmt.Errorf("it belongs to node %x of cluster %x, and this is node %x of cluster %x", found.Node, found.Cluster, id.Node, id.Cluster)
	}
	if known {
		return nil
	}
	data, err := json.Marshal(id)
	if err != nil {
		return err
	}
	return durable.Write(filepath.Join(dir, identityFile), append(data, '\n'))
}

// NewMembers gives the members of a new cluster, whose names and peer URLs are
// set, their ids, and returns the cluster's. They follow from the peer URLs
// and token, as etcd's do, so that every node comes to the same result.
func NewMembers(token string, members []Member) (cluster uint64, sorted []Member) {
	for _, m := range members {
		m.ID = hashID(strings.Join(slices.Sorted(slices.Values(m.PeerURLs)), "") + token)
		sorted = append(sorted, m)
	}
	slices.SortFunc(sorted, func(a, b Member) int { return cmp.Compare(a.ID, b.ID) })
	var ids []byte
	for _, m := range sorted {
		ids = binary.BigEndian.AppendUint64(ids, m.ID)
	}
	return hashID(string(ids)), sorted
}

// NewMemberID returns the id of a member that joins cluster now, at a time in
// nanoseconds: one that was removed and joins anew gets another.
func NewMemberID(cluster uint64, peerURLs []string, now int64) uint64 {
	return hashID(fmt.Sprint(strings.Join(slices.Sorted(slices.Values(peerURLs)), ""), cluster, now))
}

func hashID(s string) uint64 {
	sum := sha1.Sum([]byte(s)) //nolint:gosec // as above
	return max(1, binary.BigEndian.Uint64(sum[:8]))
}
