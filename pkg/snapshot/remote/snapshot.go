package remote

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/keelson-io/keelson/pkg/snapshot"
	"github.com/keelson-io/keelson/pkg/snapshot/etcdfile"
)

// fetched is a snapshot that is in a temporary directory until Close.
type fetched struct {
	*etcdfile.Reader
	dir string
}

// Close implements snapshot.Source.
func (f *fetched) Close() error { return errors.Join(f.Reader.Close(), os.RemoveAll(f.dir)) }

// OpenSnapshot fetches a snapshot of the server: everything, history included.
// It is in the directory for temporary files (TMPDIR) until Close; open opens
// it. report, if not nil, is told how many bytes have come.
func OpenSnapshot(
	ctx context.Context, client *clientv3.Client, open func(path string) (*etcdfile.Reader, error), report func(bytes int64),
) (src snapshot.Source, err error) {
	dir, err := os.MkdirTemp("", "keelson-snapshot-")
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.RemoveAll(dir))
		}
	}()
	// A snapshot is that of one member, which may lag behind the others.
	now, err := client.Get(ctx, "\x00")
	if err != nil {
		return nil, err
	}
	path := filepath.Join(dir, "snapshot.db")
	if err := Fetch(ctx, client, path, report); err != nil {
		return nil, err
	}
	r, err := open(path)
	if err != nil {
		return nil, err
	}
	if got := r.State().Revision; got < now.Header.Revision {
		return nil, errors.Join(fmt.Errorf("the snapshot has revision %d, and the server had %d before: its member lags behind, try another one", got, now.Header.Revision), r.Close())
	}
	return &fetched{r, dir}, nil
}
