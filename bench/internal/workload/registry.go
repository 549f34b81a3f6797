package workload

import (
	"fmt"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/keelson-io/keelson/bench/internal/report"
)

// kib is the size of values.
const kib = 1024

var (
	data20k   = keys(20_000)
	dataEmpty = Data{Size: kib}
)

// specs are in the order in which they run: those that share data together.
var specs = slices.Concat(base, byKeys, byClients, byWatchers, long)

var base = []Spec{
	{Name: "get1", Doc: "linearizable get, 1 client", Unit: "get", Clients: 1, Data: data20k, Shared: true, open: read(get())},
	{Name: "get200", Doc: "linearizable get, 200 clients", Unit: "get", Clients: 200, Data: data20k, Shared: true, open: read(get())},
	{Name: "sget1", Doc: "serializable get, 1 client", Unit: "get", Clients: 1, Data: data20k, Shared: true, open: read(get(clientv3.WithSerializable()))},
	{Name: "sget200", Doc: "serializable get, 200 clients", Unit: "get", Clients: 200, Data: data20k, Shared: true, open: read(get(clientv3.WithSerializable()))},
	{Name: "list", Doc: "list of 20,000 keys, whole", Unit: "list", Clients: 1, Data: data20k, Shared: true, open: read(listWhole)},
	{Name: "list-pages", Doc: "list of 20,000 keys, in pages of 500", Unit: "list", Clients: 1, Data: data20k, Shared: true, open: read(listPages)},
	{Name: "list-stream", Doc: "list of 20,000 keys through RangeStream", Unit: "list", Clients: 1, Data: data20k, Shared: true, open: read(listStream)},
	{Name: "get-idle", Doc: "linearizable get, 500/s, nothing else", Unit: "get", Clients: readers, Rate: 500, Data: data20k, Shared: true, open: openPacedGet(false)},
	{Name: "get-busy", Doc: "linearizable get, 500/s, while 200 clients update at full speed", Unit: "get", Clients: readers, Rate: 500, Data: data20k, open: openPacedGet(true)},
	{Name: "put1", Doc: "put of existing keys, 1 client", Unit: "put", Clients: 1, Data: data20k, open: openPut},
	{Name: "put200", Doc: "put of existing keys, 200 clients", Unit: "put", Clients: 200, Data: data20k, open: openPut},
	{Name: "create1", Doc: "create transaction, 1 client", Unit: "create", Clients: 1, Data: data20k, open: openCreate},
	{Name: "create200", Doc: "create transaction, 200 clients", Unit: "create", Clients: 200, Data: data20k, open: openCreate},
	{Name: "update1", Doc: "update transaction, 1 client", Unit: "update", Clients: 1, Data: data20k, open: openUpdate},
	{Name: "update200", Doc: "update transaction, 200 clients", Unit: "update", Clients: 200, Data: data20k, open: openUpdate},
	{Name: "delete1", Doc: "delete transaction, 1 client", Unit: "delete", Clients: 1, Data: data20k, open: openDelete},
	{Name: "delete200", Doc: "delete transaction, 200 clients", Unit: "delete", Clients: 200, Data: data20k, open: openDelete},
	{Name: "watch100", Doc: "100 watchers, 500 creates/s: 50,000 events/s", Unit: "event", Clients: 20, Watchers: 100, Rate: 500, Data: dataEmpty, open: openWatch},
	{Name: "watch1000", Doc: "1,000 watchers, 50 creates/s: 50,000 events/s", Unit: "event", Clients: 20, Watchers: 1000, Rate: 50, Data: dataEmpty, open: openWatch},
	{Name: "watch100-full", Doc: "100 watchers, 50 clients create at full speed", Unit: "event", Clients: 50, Watchers: 100, Data: dataEmpty, open: openWatch},
	{Name: "lease-grant200", Doc: "lease grant, 200 clients", Unit: "grant", Clients: 200, Data: dataEmpty, open: openLeaseGrant},
	{Name: "keepalive200", Doc: "lease keepalive, 200 clients, one stream each", Unit: "keepalive", Clients: 200, Data: dataEmpty, open: openKeepAlive},
	{Name: "keepalive-once200", Doc: "lease keepalive, 200 clients, a stream for each keepalive (KeepAliveOnce)", Unit: "keepalive", Clients: 200, Data: dataEmpty, open: openKeepAliveOnce},
	{Name: "cluster", Doc: "what a cluster of 1,000 nodes asks for: lease renewals, pod churn, events, gets, lists, 60 watches", Unit: "request", Clients: 20, Rate: clusterRate, Data: dataEmpty, Scale: 3, open: openCluster},
	{Name: "count", Doc: "count over 100,000 keys", Unit: "count", Clients: 1, Data: keys(100_000), Shared: true, open: read(count)},
}

// How the figures grow: with the data, the clients and the watchers. The names
// have the number after the @.
var (
	byKeys     = slices.Concat(growKeys(1_000), growKeys(10_000), startOnly(growKeys(20_000)), growKeys(100_000), growKeys(1_000_000))
	byClients  = slices.Concat(growClients(1), growClients(10), growClients(50), growClients(200), growClients(1_000))
	byWatchers = slices.Concat(growWatchers(1), growWatchers(10), growWatchers(100), growWatchers(1_000))
)

// long are those that take minutes.
var long = []Spec{
	{
		Name: "failover", Doc: "kill -9 of the leader while a client writes every 5 ms: the longest time without an acknowledged write", Unit: "failover",
		Clients: 1, Data: data20k, Nodes: true, Limit: 5 * time.Minute, Beyond: failovers * 4 * time.Second, open: openFailover,
	},
	{
		Name: "catch-up", Doc: "a node joins with an empty directory, until it answers a linearizable read: " + report.Number(catchUpKeys) + " keys of 1 KiB, 100 writes/s meanwhile", Unit: "join",
		Clients: 1, Data: dataEmpty, Nodes: true, Limit: 10 * time.Minute, Beyond: 40 * time.Second, open: openCatchUp,
	},
	{
		Name: "save", Doc: "a snapshot of 1,000,000 keys of 1 KiB, read and thrown away", Unit: "snapshot", Clients: 1,
		Data: keys(1_000_000), Rounds: growRounds, Limit: 2 * time.Minute, Beyond: 10 * time.Second, open: read(save),
	},
	{
		Name: "save-beside", Doc: "update transaction, 8 clients, while a snapshot of 1,000,000 keys of 1 KiB is read", Unit: "update", Clients: 8,
		Data: keys(1_000_000), Rounds: growRounds, Limit: 2 * time.Minute, Beyond: 20 * time.Second, open: openSaveBeside,
	},
	compaction("compact@100k", 100_000),
	compaction("compact", 1_000_000),
	{
		Name: "edge", Doc: "an idle Kubernetes of one node, in real time", Unit: "write", Clients: 1,
		Data: dataEmpty, Parallel: true, Rounds: 1, open: openEdge,
	},
}

func compaction(name string, revisions int) Spec {
	return Spec{
		Name: name, Doc: "update transaction, 20 clients, while " + report.Number(float64(revisions)) + " revisions are compacted", Unit: "update", Clients: 20,
		Data: Data{Keys: 10_000, Size: kib, Revisions: revisions}, Fresh: true, Rounds: 1,
		Limit: longestCompaction + time.Minute, Beyond: time.Duration(revisions) * 30 * time.Microsecond, open: openCompact,
	}
}

func keys(n int) Data { return Data{Keys: n, Size: kib} }

// Those that show growth need not be as exact as the others.
const (
	growRounds = 3
	growScale  = 0.5
)

// growKeys has the starts before the updates, so that the data is copied once.
func growKeys(n int) []Spec {
	specs := []Spec{
		{Name: "get200@", Doc: "linearizable get, 200 clients", Unit: "get", Clients: 200, Shared: true, open: read(get())},
		{Name: "count@", Doc: "count of all keys", Unit: "count", Clients: 1, Shared: true, open: read(count)},
		{Name: "list-page@", Doc: "the first page of 500", Unit: "page", Clients: 1, Shared: true, open: read(listPage)},
		{Name: "start@", Doc: "start, then 200 gets/s", Unit: "get", Clients: readers, Rate: 200, Restart: true, Shared: true, open: openStarted},
		{Name: "update200@", Doc: "update transaction, 200 clients", Unit: "update", Clients: 200, open: openUpdate},
	}
	for i := range specs {
		s := &specs[i]
		s.Name, s.Doc = s.Name+short(n), s.Doc+", "+short(n)+" keys"
		s.Data, s.Rounds, s.Scale = keys(n), growRounds, growScale
	}
	return specs
}

func startOnly(specs []Spec) []Spec {
	return slices.DeleteFunc(specs, func(s Spec) bool { return !s.Restart })
}

func growClients(n int) []Spec {
	doc := fmt.Sprintf(", %d clients", n)
	return []Spec{
		{Name: fmt.Sprintf("get@c%d", n), Doc: "linearizable get" + doc, Unit: "get", Clients: n, Data: data20k, Shared: true, Rounds: growRounds, Scale: growScale, open: read(get())},
		{Name: fmt.Sprintf("update@c%d", n), Doc: "update transaction" + doc, Unit: "update", Clients: n, Data: data20k, Rounds: growRounds, Scale: growScale, open: openUpdate},
	}
}

func growWatchers(n int) []Spec {
	return []Spec{{
		Name: fmt.Sprintf("watch@%d", n), Doc: fmt.Sprintf("%d watchers, 50 creates/s", n), Unit: "event", Clients: 20, Watchers: n, Rate: 50,
		Data: dataEmpty, Rounds: growRounds, Scale: growScale, open: openWatch,
	}}
}

// short writes 1000000 as 1m.
func short(n int) string {
	switch {
	case n%1_000_000 == 0:
		return fmt.Sprintf("%dm", n/1_000_000)
	case n%1_000 == 0:
		return fmt.Sprintf("%dk", n/1_000)
	default:
		return strconv.Itoa(n)
	}
}

// All returns every workload.
func All() []Spec { return slices.Clone(specs) }

// Find returns the workloads that match one of the patterns, in the order of
// All. In a pattern * stands for any letters; one that begins with - leaves
// workloads out.
func Find(patterns []string) ([]Spec, error) {
	var found []Spec
	used := make([]bool, len(patterns))
	for _, s := range specs {
		in := false
		for i, pattern := range patterns {
			rest, out := strings.CutPrefix(pattern, "-")
			ok, err := path.Match(rest, s.Name)
			if err != nil {
				return nil, fmt.Errorf("%q: %w", pattern, err)
			}
			if ok {
				in, used[i] = !out, true
			}
		}
		if in {
			found = append(found, s)
		}
	}
	if i := slices.Index(used, false); i >= 0 {
		return nil, fmt.Errorf("no workload is called %q", patterns[i])
	}
	return found, nil
}
