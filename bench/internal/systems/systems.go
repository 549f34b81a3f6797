package systems

import (
	"fmt"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

// System is a server with the settings it is measured with.
type System struct {
	Name string
	Doc  string
	// Base is the system that it is compared with.
	Base string
	// Bulk: it takes transactions of many puts, so that data is loaded with them.
	Bulk bool
	// Loaders are the clients that load data otherwise.
	Loaders int
	// Pprof: it has --enable-pprof.
	Pprof bool
	// Forgets: it answers and keeps nothing. DataFile in its directory has the
	// data that it is to answer with.
	Forgets bool
	// Most keys and revisions that it is measured with, unless somebody has hours.
	Most int
	// Nodes of a cluster, each a process; 0: it is none.
	Nodes int

	program string
	// only these workloads are for it; none: all.
	only []string
	// postgres has what those on PostgreSQL need, or is nil.
	postgres *onPostgres
	below    string // directory to make in that of the data
	port     int    // of a cluster's clients; the next is that of its nodes
	args     func(p place) []string
}

// onPostgres is how a system uses a PostgreSQL, each its own.
type onPostgres struct {
	database  string
	instances int           // of the system, between which clients are spread
	delay     time.Duration // added to each round trip
}

// place is where one process of a system has its files.
type place struct {
	data     string // directory
	socket   string
	postgres string // directory of PostgreSQL's socket
	node     *node  // of a cluster, or nil
}

// DataFile says what a system that keeps nothing is to answer with.
const DataFile = "data.json"

// quota is for those that have one; a million revisions of 1 KiB are beyond
// etcd's default of 2 GiB.
const quota = 16 << 30

// kine's own default parameters (kine pkg/drivers/sqlite), but for how it syncs.
const kineFullDSN = "?_journal_mode=WAL&_busy_timeout=30000&_synchronous=FULL&_txlock=immediate&_stmt_cache_size=20&cache=shared"

// kineMost leaves out a million keys: kine loads them in minutes, and each of
// its starts rewrites the file (VACUUM), 5 KiB a key.
const kineMost = 200_000

var systems = slices.Concat(onFiles, clusters, postgresSystems("pg", "", 1, 0), postgresSystems("pg3", ", three instances", 3, 0),
	postgresSystems("pg-1ms", ", 1 ms away", 1, time.Millisecond), postgresSystems("pg-5ms", ", 5 ms away", 1, 5*time.Millisecond))

var onFiles = []System{
	{
		Name: "etcd", Bulk: true, Pprof: true, program: "etcd",
		Doc: "etcd " + EtcdVersion + ", defaults (an acknowledged write is synced)",
		args: func(p place) []string {
			peer := "unix://" + strings.TrimSuffix(p.socket, ".sock") + "-peer.sock"
			return append(clientArgs(p),
				"--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer, "--initial-cluster", "default="+peer)
		},
	},
	{
		Name: "kine", program: "kine", Base: "etcd", Most: kineMost,
		Loaders: 4, // more would wait for each other's locks
		Doc:     "kine " + KineVersion + " on SQLite, defaults (synchronous=NORMAL: a power cut may take acknowledged writes)",
		args: func(p place) []string {
			return []string{"--listen-address", "unix://" + p.socket, "--metrics-bind-address", "0"}
		},
	},
	{
		Name: "kine-full", program: "kine", Base: "etcd", Most: kineMost, below: "db",
		Doc: "kine " + KineVersion + " on SQLite, synchronous=FULL",
		args: func(p place) []string {
			return []string{
				"--listen-address", "unix://" + p.socket, "--metrics-bind-address", "0",
				"--endpoint", "sqlite://" + filepath.Join(p.data, "db", "state.db") + kineFullDSN,
			}
		},
	},
	{
		Name: "keelson", Base: "etcd", Bulk: true, Pprof: true, program: "keelson",
		Doc:  "keelson on SQLite, defaults (synchronous=FULL)",
		args: clientArgs,
	},
	{
		Name: "floor", Base: "etcd", Forgets: true, program: "floor",
		Doc: "no store: a gRPC server that has its answers encoded and keeps nothing, for what the client and gRPC leave",
		only: []string{
			"get1", "get200", "list", "list-pages", "count", "put1", "put200", "create1", "create200", "update1", "update200",
		},
		args: func(p place) []string {
			return []string{"floor", "-data", filepath.Join(p.data, DataFile), "-socket", p.socket}
		},
	},
}

// clientArgs are flags that etcd and keelson have.
func clientArgs(p place) []string {
	return []string{
		"--data-dir", p.data, "--listen-client-urls", "unix://" + p.socket, "--advertise-client-urls", "unix://" + p.socket,
		"--quota-backend-bytes", strconv.Itoa(quota),
	}
}

// postgresSystems are kine and keelson on PostgreSQL. Several instances are for
// workloads in which they contend.
func postgresSystems(name, how string, instances int, delay time.Duration) []System {
	var only []string
	if instances > 1 {
		only = []string{"create200", "update200"}
	}
	doc := " on PostgreSQL" + how + "; CPU and bytes with PostgreSQL's, memory without"
	return []System{
		{
			Name: "kine-" + name, program: "kine", Most: kineMost, only: only, Loaders: 50,
			Doc:      "kine " + KineVersion + doc,
			postgres: &onPostgres{"kine", instances, delay},
			args: func(p place) []string {
				return []string{
					"--listen-address", "unix://" + p.socket, "--metrics-bind-address", "0", "--endpoint", postgresURL(p.postgres, "kine"),
					// Without it kine opens more than the 100 that PostgreSQL takes, and fails.
					"--datastore-max-open-connections", strconv.Itoa(90 / instances),
				}
			},
		},
		{
			Name: "keelson-" + name, Base: "kine-" + name, Bulk: true, Pprof: true, program: "keelson", only: only,
			Doc:      "keelson" + doc,
			postgres: &onPostgres{"keelson", instances, delay},
			args: func(p place) []string {
				return append(clientArgs(p), "--datastore", postgresURL(p.postgres, "keelson"))
			},
		},
	}
}

// Measures says whether the workload is for the system.
func (s System) Measures(workload string) bool {
	return len(s.only) == 0 || slices.Contains(s.only, workload)
}

// Loader returns the system that loads data for this one: of those with the
// same files the fastest.
func (s System) Loader() System {
	i := slices.IndexFunc(systems, func(other System) bool {
		return other.program == s.program && (other.postgres == nil) == (s.postgres == nil) && other.Nodes == s.Nodes
	})
	return systems[i]
}

// All returns every system.
func All() []System { return slices.Clone(systems) }

// Find returns the systems that match one of the patterns, in the order of All.
// In a pattern * stands for any letters.
func Find(patterns []string) ([]System, error) {
	var found []System
	used := make([]bool, len(patterns))
	for _, s := range systems {
		in := false
		for i, pattern := range patterns {
			ok, err := path.Match(pattern, s.Name)
			if err != nil {
				return nil, fmt.Errorf("%q: %w", pattern, err)
			}
			in, used[i] = in || ok, used[i] || ok
		}
		if in {
			found = append(found, s)
		}
	}
	if i := slices.Index(used, false); i >= 0 {
		return nil, fmt.Errorf("no system is called %q", patterns[i])
	}
	return found, nil
}
