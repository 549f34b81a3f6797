package cmd

const longHelp = `Keelson serves the etcd v3 API and keeps the data in SQLite or PostgreSQL, so
that kube-apiserver and every other etcd client run with no etcd.

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

  # The same from the environment, or from a file
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
