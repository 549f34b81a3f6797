package cmd

const longHelp = `Keelson serves the etcd v3 API, so that kube-apiserver and every other etcd client
run with no etcd. It keeps the data in SQLite; as a cluster, in SQLite on every
node, replicated over Raft; or in PostgreSQL.

Without flags it keeps its data in ./default.keelson and serves on a unix
socket in there and on http://127.0.0.1:2379. Flags have etcd's names.`

const examples = `  # Serve on a unix socket only and point a kube-apiserver at it
  keelson --data-dir=/var/lib/keelson --listen-client-urls=unix:///run/keelson/keelson.sock
  kube-apiserver --etcd-servers=unix:///run/keelson/keelson.sock ...

  # Talk to it with etcdctl
  keelson
  etcdctl --endpoints=http://127.0.0.1:2379 put greeting hello
  etcdctl --endpoints=http://127.0.0.1:2379 get --prefix ''

  # Serve other machines, with TLS and client certificates
  keelson --listen-client-urls=https://0.0.0.0:2379 \
    --advertise-client-urls=https://10.0.0.5:2379 \
    --cert-file=server.crt --key-file=server.key \
    --client-cert-auth --trusted-ca-file=ca.crt

  # A node of a new cluster; the same on the others, with their own name and URLs
  keelson --name=a --data-dir=/var/lib/keelson \
    --listen-client-urls=http://127.0.0.1:2379 --listen-peer-urls=https://10.0.0.1:2380 \
    --peer-cert-file=a.crt --peer-key-file=a.key --peer-trusted-ca-file=ca.crt \
    --initial-cluster=a=https://10.0.0.1:2380,b=https://10.0.0.2:2380,c=https://10.0.0.3:2380

  # In PostgreSQL; the password from a file (PGPASSFILE), or in the URL in KEELSON_DATASTORE
  keelson --datastore=postgres://keelson@db.example.com/keelson

  # A backup every night, each of them for 30 days
  keelson --data-dir=/var/lib/keelson \
    --snapshot-schedule='30 3 * * *' --snapshot-dir=/backup --snapshot-retention=30d

  # Settings from the environment, or from a file
  KEELSON_DATA_DIR=/var/lib/keelson keelson
  keelson --config-file=/etc/keelson.yaml    # data-dir: /var/lib/keelson`

const footer = `
Other:
  -h, --help      print this text
      --version   print the version

Each flag can be given as an environment variable as well, for instance
KEELSON_DATA_DIR for --data-dir, and as a key of the file. Flags that etcd has
too are also read from its variables, here ETCD_DATA_DIR, unless there is a
file. A flag goes before KEELSON_…, that before ETCD_… and before the file.

Health: GET /health, /livez, /readyz. Metrics: GET /metrics. On every client URL.
`

// commands is the list in the help text of keelson itself.
const commands = `
Commands:
  keelson                         serve (with the flags below)
  keelson snapshot save FILE      save a snapshot, in etcd's format
  keelson snapshot status FILE    say what is in a snapshot
  keelson snapshot restore FILE   make keelson's data of a snapshot
  keelson import                  bring the data of kine, etcd or another keelson
  keelson export                  write the data to a snapshot, or into an etcd
  keelson verify PLACE PLACE      compare the data of two places
  keelson check                   look through all of the data for damage
  keelson version                 print the version

keelson COMMAND --help explains each of them.
`

const snapshotHelp = `Snapshots are files in etcd's format: keelson, etcdctl and etcdutl all write and
read them, so that a backup of one can be restored into the other, with all
keys, revisions, versions, leases and the history since the last compaction.`

const snapshotExamples = `  # A backup of a running server, and what is in it
  keelson snapshot save /backup/keelson.db --endpoints=unix:///run/keelson/keelson.sock
  keelson snapshot status /backup/keelson.db -w table

  # Restore it into a new data directory, and start on that
  keelson snapshot restore /backup/keelson.db --data-dir=/var/lib/keelson
  keelson --data-dir=/var/lib/keelson`

const saveHelp = `Save writes a snapshot of a server, keelson or etcd, to FILE while it goes on.
With --data-dir, --datastore, --config-file or --offline it reads keelson's data
itself; a data directory must not be in use then.

The file is there when it is whole, on the disk, and its checksum was compared;
before that its name goes on with .part- and a number, which is what a save that
was killed leaves. One that is there is not replaced without --force.`

const saveExamples = `  # From the server on this machine
  keelson snapshot save backup.db

  # With TLS, as etcdctl
  keelson snapshot save backup.db --endpoints=https://10.0.0.5:2379 \
    --cacert=ca.crt --cert=client.crt --key=client.key

  # Without a server
  keelson snapshot save backup.db --data-dir=/var/lib/keelson
  KEELSON_DATASTORE=postgres://keelson@db/keelson keelson snapshot save backup.db --offline`

const restoreHelp = `Restore makes keelson's data of FILE: a snapshot by keelson, etcdctl or etcdutl,
or etcd's db file. The data is there when everything was read, checked and made
durable, or not at all.

Where it goes is said as to the server: --data-dir, --datastore, --config-file, or
the server's variables. Data that is there is not replaced without --force, and a
data directory that a server uses not at all.

Keys, revisions, versions, leases and the compact revision are those of the
snapshot; leases begin anew with their full time. Clients that have seen later
revisions, as those of a kube-apiserver, wait for events that will be others: use
--bump-revision with --mark-compacted, which make them list anew.`

const restoreExamples = `  # Into a new data directory; what kube-apiservers have seen is past
  keelson snapshot restore backup.db --data-dir=/var/lib/keelson \
    --bump-revision=1000000000 --mark-compacted

  # From the files of an etcd that does not run
  keelson snapshot restore /var/lib/etcd --skip-hash-check \
    --data-dir=/var/lib/keelson

  # Into PostgreSQL
  KEELSON_DATASTORE=postgres://keelson@db/keelson keelson snapshot restore backup.db

  # Look whether a backup is whole, and how much it has
  keelson snapshot restore backup.db --dry-run

  # A new cluster: the same on every node, each with its own --name
  keelson snapshot restore backup.db --name=a --data-dir=/var/lib/keelson \
    --initial-cluster=a=https://10.0.0.1:2380,b=https://10.0.0.2:2380,c=https://10.0.0.3:2380`

const statusHelp = `Status reads all of FILE and says what is in it. Hash, revision, total keys, total
size and version are those that etcdutl prints, which counts what its
--bump-revision leaves as one more key; the hash covers the content, however the
file was written. A checksum at the file's end is compared.`

const statusExamples = `  keelson snapshot status backup.db
  keelson snapshot status backup.db -w json`
