// Package etcdfile reads and writes the files in which etcd keeps and backs up
// its data: a bbolt database, which etcdctl snapshot save ends with a SHA-256.
//
//	bucket           key                          value
//	key              revision (17 bytes, 18 'ed)  mvccpb.KeyValue
//	meta             consistent_index, term       8 bytes, big-endian
//	                 confState                    JSON
//	                 storageVersion               3.6.0; none before 3.6
//	                 scheduledCompactRev,         revision
//	                 finishedCompactRev
//	lease            id (8 bytes, big-endian)     leasepb.Lease
//	alarm            etcdserverpb.AlarmMember     nothing
//	cluster          clusterVersion               3.6.0
//	members          id in hexadecimal            JSON
//	members_removed  id in hexadecimal            removed
//	auth             authRevision, authEnabled    8 bytes; 0 or 1
//	authUsers, authRoles
//
// etcdutl snapshot restore puts other members into the file, and an index of
// its own.
package etcdfile

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"

	"github.com/keelson-io/keelson/pkg/eventlog"
	"github.com/keelson-io/keelson/pkg/snapshot"
)

// ErrAuth: the data has users and roles, and authentication is on. Without them
// it would be open to everybody.
var ErrAuth = errors.New("etcdfile: the data is protected by users and roles")

// The buckets, and what is in some of them.
const (
	bucketKey     = "key"
	bucketMeta    = "meta"
	bucketLease   = "lease"
	bucketAlarm   = "alarm"
	bucketCluster = "cluster"
	bucketMembers = "members"
	bucketAuth    = "auth"
	bucketRoles   = "authRoles"
	bucketUsers   = "authUsers"

	metaIndex     = "consistent_index"
	metaTerm      = "term"
	metaConf      = "confState"
	metaVersion   = "storageVersion"
	metaScheduled = "scheduledCompactRev"
	metaFinished  = "finishedCompactRev"

	clusterVersion = "clusterVersion"
	authRevision   = "authRevision"
	authEnabled    = "authEnabled"

	newestVersion = "3.7.0" // of the files read, but for its last number
)

// Versions are those of etcd that files can be written for, the newest first. An
// etcd takes the files of its own and those for etcds before it.
var Versions = []string{"3.7", "3.6", "3.5"}

// DefaultVersion is the oldest one whose files every etcd that is supported
// takes, and the one of etcds that know of storage versions.
const DefaultVersion = "3.6"

// firstStored is the version from which on the file says of which version it is.
const firstStored = "3.6"

// buckets are all that etcd makes.
var buckets = []string{
	bucketAlarm, bucketAuth, bucketRoles, bucketUsers, bucketCluster, bucketKey, bucketLease, bucketMembers, "members_removed", bucketMeta,
}

const (
	revisionSize = 8 + 1 + 8
	sector       = 512 // sizes of databases are a multiple of it
)

// decodeRevision returns the revision of a name, and whether it is a tombstone's.
func decodeRevision(name []byte) (r eventlog.Revision, tombstone bool, err error) {
	tombstone = len(name) == revisionSize+1 && name[revisionSize] == 't'
	if (len(name) == revisionSize || tombstone) && name[8] == '_' {
		r = eventlog.Revision{Main: int64(binary.BigEndian.Uint64(name)), Sub: int64(binary.BigEndian.Uint64(name[9:]))}
	}
	if r.Main <= 0 || r.Sub < 0 {
		return r, false, fmt.Errorf("%w: %q is not the name of a revision", snapshot.ErrInvalid, name)
	}
	return r, tombstone, nil
}

func bigEndian(v uint64) []byte { return binary.BigEndian.AppendUint64(nil, v) }

// Member is a member of a cluster, as its data names it.
type Member struct {
	ID         uint64
	Name       string
	PeerURLs   []string
	ClientURLs []string
	IsLearner  bool
}

// defaultMember is an etcd's that is started without flags.
var defaultMember = Member{ID: 0x8e9e05c52164694d, Name: "default", PeerURLs: []string{"http://localhost:2380"}, ClientURLs: []string{"http://localhost:2379"}}

func (m *Member) key() []byte { return strconv.AppendUint(nil, m.ID, 16) }

func (m *Member) json() ([]byte, error) {
	return json.Marshal(struct {
		ID         uint64   `json:"id"`
		PeerURLs   []string `json:"peerURLs"`
		IsLearner  bool     `json:"isLearner,omitempty"`
		Name       string   `json:"name,omitempty"`
		ClientURLs []string `json:"clientURLs,omitempty"`
	}{m.ID, m.PeerURLs, m.IsLearner, m.Name, m.ClientURLs})
}

// confState is Raft's configuration of these members.
func confState(members []Member) ([]byte, error) {
	var conf struct {
		Voters    []uint64 `json:"voters,omitempty"`
		Learners  []uint64 `json:"learners,omitempty"`
		AutoLeave bool     `json:"auto_leave"`
	}
	for _, m := range members {
		if m.IsLearner {
			conf.Learners = append(conf.Learners, m.ID)
		} else {
			conf.Voters = append(conf.Voters, m.ID)
		}
	}
	return json.Marshal(conf)
}

// checksumSize is how much longer a snapshot is than a database.
const checksumSize = sha256.Size
