package etcdfile

import (
	"bytes"
	"slices"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/server/v3/lease/leasepb"
	"google.golang.org/protobuf/proto"

	"github.com/keelson-io/keelson/pkg/eventlog"
	"github.com/keelson-io/keelson/pkg/snapshot"
)

// entry is one of a bucket.
type entry struct{ key, value []byte }

// entriesOf returns what is in each bucket but that of the keys, in order.
func entriesOf(state snapshot.State, opt Options) (map[string][]entry, error) {
	conf, err := confState(opt.Members)
	if err != nil {
		return nil, err
	}
	all := map[string][]entry{
		bucketMeta: {
			{[]byte(metaIndex), bigEndian(opt.Index)},
			{[]byte(metaTerm), bigEndian(opt.Term)},
			{[]byte(metaConf), conf},
		},
		bucketCluster: {{[]byte(clusterVersion), []byte(opt.Version + ".0")}},
		bucketAuth:    {{[]byte(authRevision), bigEndian(1)}},
	}
	add := func(bucket string, key, value []byte) { all[bucket] = append(all[bucket], entry{key, value}) }
	if opt.Version >= firstStored {
		add(bucketMeta, []byte(metaVersion), []byte(opt.Version+".0"))
	}
	if state.Compacted > 0 {
		name := snapshot.AppendRevision(nil, eventlog.Revision{Main: state.Compacted}, false)
		add(bucketMeta, []byte(metaScheduled), name)
		add(bucketMeta, []byte(metaFinished), name)
	}
	for _, m := range opt.Members {
		value, err := m.json()
		if err != nil {
			return nil, err
		}
		add(bucketMembers, m.key(), value)
	}
	for _, a := range state.Alarms {
		name, err := proto.Marshal(&pb.AlarmMember{MemberID: a.Member, Alarm: pb.AlarmType(a.Alarm)})
		if err != nil {
			return nil, err
		}
		add(bucketAlarm, name, nil)
	}
	for _, l := range state.Leases {
		value, err := proto.Marshal(&leasepb.Lease{ID: l.ID, TTL: l.TTL, RemainingTTL: l.Remaining})
		if err != nil {
			return nil, err
		}
		add(bucketLease, bigEndian(uint64(l.ID)), value)
	}
	for _, entries := range all {
		slices.SortFunc(entries, func(a, b entry) int { return bytes.Compare(a.key, b.key) })
	}
	return all, nil
}
