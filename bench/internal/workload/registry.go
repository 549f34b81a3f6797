package workload

import (
	"fmt"
	"slices"
	"strings"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// kib is the size of values.
const kib = 1024

var (
	data20k  = Data{Keys: 20_000, Size: kib}
	data100k = Data{Keys: 100_000, Size: kib}
)

// specs are in the order in which they run: those that share data together.
var specs = []Spec{
	{Name: "get1", Doc: "linearizable get, 1 client", Unit: "get", Clients: 1, Data: data20k, Shared: true, open: read(get())},
	{Name: "get200", Doc: "linearizable get, 200 clients", Unit: "get", Clients: 200, Data: data20k, Shared: true, open: read(get())},
	{Name: "sget1", Doc: "serializable get, 1 client", Unit: "get", Clients: 1, Data: data20k, Shared: true, open: read(get(clientv3.WithSerializable()))},
	{Name: "sget200", Doc: "serializable get, 200 clients", Unit: "get", Clients: 200, Data: data20k, Shared: true, open: read(get(clientv3.WithSerializable()))},
	{Name: "list", Doc: "list of 20,000 keys, whole", Unit: "list", Clients: 1, Data: data20k, Shared: true, open: read(listWhole)},
	{Name: "list-pages", Doc: "list of 20,000 keys, in pages of 500", Unit: "list", Clients: 1, Data: data20k, Shared: true, open: read(listPages)},
	{Name: "list-stream", Doc: "list of 20,000 keys through RangeStream", Unit: "list", Clients: 1, Data: data20k, Shared: true, open: read(listStream)},
	{Name: "count", Doc: "count over 100,000 keys", Unit: "count", Clients: 1, Data: data100k, Shared: true, open: read(count)},
	{Name: "put1", Doc: "put of existing keys, 1 client", Unit: "put", Clients: 1, Data: data20k, open: openPut},
	{Name: "put200", Doc: "put of existing keys, 200 clients", Unit: "put", Clients: 200, Data: data20k, open: openPut},
	{Name: "create1", Doc: "create transaction, 1 client", Unit: "create", Clients: 1, Data: data20k, open: openCreate},
	{Name: "create200", Doc: "create transaction, 200 clients", Unit: "create", Clients: 200, Data: data20k, open: openCreate},
	{Name: "update1", Doc: "update transaction, 1 client", Unit: "update", Clients: 1, Data: data20k, open: openUpdate},
	{Name: "update200", Doc: "update transaction, 200 clients", Unit: "update", Clients: 200, Data: data20k, open: openUpdate},
	{Name: "delete1", Doc: "delete transaction, 1 client", Unit: "delete", Clients: 1, Data: data20k, open: openDelete},
	{Name: "delete200", Doc: "delete transaction, 200 clients", Unit: "delete", Clients: 200, Data: data20k, open: openDelete},
}

// All returns every workload.
func All() []Spec { return slices.Clone(specs) }

// Find returns the workloads with these names, each of which may be a prefix
// that ends in *, in the order of All.
func Find(names []string) ([]Spec, error) {
	var found []Spec
	used := make([]bool, len(names))
	for _, s := range specs {
		matches := false
		for i, name := range names {
			start, isPrefix := strings.CutSuffix(name, "*")
			if s.Name == name || isPrefix && strings.HasPrefix(s.Name, start) {
				matches, used[i] = true, true
			}
		}
		if matches {
			found = append(found, s)
		}
	}
	if i := slices.Index(used, false); i >= 0 {
		return nil, fmt.Errorf("no workload is called %q", names[i])
	}
	return found, nil
}
