package remote

import (
	"context"
	"errors"
	"fmt"
	"os"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/keelson-io/keelson/pkg/snapshot"
	"github.com/keelson-io/keelson/pkg/snapshot/etcdfile"
)

// OpenSnapshot fetches a snapshot of the server: everything, history included.
// It takes room in the directory for temporary files (TMPDIR) until Close, but
// has no name there; open opens it, and owns it. report, if not nil, is told
// how many bytes have come, and how many it will be.
func OpenSnapshot(
	ctx context.Context, client *clientv3.Client, open func(*os.File) (*etcdfile.Reader, error), report func(done, total int64),
) (snapshot.Source, error) {
	file, err := nameless("keelson-snapshot-")
	if err != nil {
		return nil, err
	}
	// A snapshot is that of one member, which may lag behind the others.
	now, err := client.Get(ctx, "\x00")
	if err == nil {
		err = Fetch(ctx, client, file, report)
	}
	if err != nil {
		return nil, errors.Join(err, file.Close())
	}
	r, err := open(file)
	if err != nil {
		return nil, err
	}
	if got := r.State().Revision; got < now.Header.Revision {
		return nil, errors.Join(fmt.Errorf("the snapshot has revision %d, and the server had %d before: its member lags behind, try another one", got, now.Header.Revision), r.Close())
	}
	return r, nil
}

// nameless returns a temporary file that is gone when it is closed, or when the
// process ends in whatever way: it may have secrets.
func nameless(prefix string) (*os.File, error) {
	file, err := os.CreateTemp("", prefix)
	if err != nil {
		return nil, err
	}
	if err := os.Remove(file.Name()); err != nil {
		return nil, errors.Join(err, file.Close())
	}
	return file, nil
}
