package systems

import (
	"fmt"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// System is a server with the settings it is measured with.
type System struct {
	Name string
	Doc  string
	// Bulk: it takes transactions of many puts, so that data is loaded with them.
	Bulk bool
	// Pprof: it has --enable-pprof.
	Pprof bool

	program string
	// database in a PostgreSQL of its own, or empty.
	database string
	below    string // directory to make in that of the data
	args     func(dir, socket string) []string
}

// quota is for those that have one; a million revisions of 1 KiB are beyond
// etcd's default of 2 GiB.
const quota = 16 << 30

// kine's own default parameters (kine pkg/drivers/sqlite), but for how it syncs.
const kineFullDSN = "?_journal_mode=WAL&_busy_timeout=30000&_synchronous=FULL&_txlock=immediate&_stmt_cache_size=20&cache=shared"

var systems = []System{
	{
		Name: "etcd", Bulk: true, Pprof: true, program: "etcd",
		Doc: "etcd " + EtcdVersion + ", defaults (an acknowledged write is synced)",
		args: func(dir, socket string) []string {
			peer := "unix://" + strings.TrimSuffix(socket, ".sock") + "-peer.sock"
			return []string{
				"--data-dir", dir, "--listen-client-urls", "unix://" + socket, "--advertise-client-urls", "unix://" + socket,
				"--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer, "--initial-cluster", "default=" + peer,
				"--quota-backend-bytes", strconv.Itoa(quota),
			}
		},
	},
	{
		Name: "kine", program: "kine",
		Doc: "kine " + KineVersion + " on SQLite, defaults (synchronous=NORMAL: a power cut may take acknowledged writes)",
		args: func(_, socket string) []string {
			return []string{"--listen-address", "unix://" + socket, "--metrics-bind-address", "0"}
		},
	},
	{
		Name: "kine-full", program: "kine", below: "db",
		Doc: "kine " + KineVersion + " on SQLite, synchronous=FULL",
		args: func(dir, socket string) []string {
			return []string{
				"--listen-address", "unix://" + socket, "--metrics-bind-address", "0",
				"--endpoint", "sqlite://" + filepath.Join(dir, "db", "state.db") + kineFullDSN,
			}
		},
	},
	{
		Name: "keelson", Bulk: true, Pprof: true, program: "keelson",
		Doc: "keelson on SQLite, defaults (synchronous=FULL)",
		args: func(dir, socket string) []string {
			return []string{
				"--data-dir", dir, "--listen-client-urls", "unix://" + socket, "--advertise-client-urls", "unix://" + socket,
				"--quota-backend-bytes", strconv.Itoa(quota),
			}
		},
	},
	{
		Name: "kine-pg", program: "kine", database: "kine",
		Doc: "kine " + KineVersion + " on PostgreSQL; CPU and bytes with PostgreSQL's, memory without",
		args: func(dir, socket string) []string {
			return []string{
				"--listen-address", "unix://" + socket, "--metrics-bind-address", "0", "--endpoint", postgresURL(dir, "kine"),
				// Without it kine opens more than the 100 that PostgreSQL takes, and fails.
				"--datastore-max-open-connections", "90",
			}
		},
	},
	{
		Name: "keelson-pg", Bulk: true, Pprof: true, program: "keelson", database: "keelson",
		Doc: "keelson on PostgreSQL; CPU and bytes with PostgreSQL's, memory without",
		args: func(dir, socket string) []string {
			return []string{
				"--data-dir", dir, "--listen-client-urls", "unix://" + socket, "--advertise-client-urls", "unix://" + socket,
				"--quota-backend-bytes", strconv.Itoa(quota), "--datastore", postgresURL(dir, "keelson"),
			}
		},
	},
}

// Loader returns the system that loads data for this one: of those with the
// same files the fastest.
func (s System) Loader() System {
	i := slices.IndexFunc(systems, func(other System) bool { return other.program == s.program && other.database == s.database })
	return systems[i]
}

// All returns every system; the first is what the others are compared with.
func All() []System { return slices.Clone(systems) }

// Find returns the systems with these names, in the order of All.
func Find(names []string) ([]System, error) {
	var found []System
	for _, s := range systems {
		if slices.Contains(names, s.Name) {
			found = append(found, s)
		}
	}
	for _, name := range names {
		if !slices.ContainsFunc(systems, func(s System) bool { return s.Name == name }) {
			return nil, fmt.Errorf("no system is called %q", name)
		}
	}
	return found, nil
}
