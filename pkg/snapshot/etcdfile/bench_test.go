package etcdfile_test

import (
	"context"
	"fmt"
	"path/filepath"
	"testing"

	"github.com/keelson-io/keelson/pkg/eventlog"
	"github.com/keelson-io/keelson/pkg/snapshot"
	"github.com/keelson-io/keelson/pkg/snapshot/etcdfile"
)

// made is a source of n records of 1 KiB.
type made struct{ n int64 }

func (m made) State() snapshot.State { return snapshot.State{Revision: m.n + 1} }
func (m made) Close() error          { return nil }

func (m made) Records(_ context.Context, fn func(*eventlog.Record) error) error {
	r := eventlog.Record{Kind: eventlog.KindPut, Version: 1, Value: make([]byte, 1024)}
	for i := range m.n {
		r.Revision.Main, r.CreateRevision = i+2, i+2
		r.Key = fmt.Appendf(r.Key[:0], "/registry/pods/namespace/%010d", i)
		if err := fn(&r); err != nil {
			return err
		}
	}
	return nil
}

// BenchmarkWrite makes a file of a million records.
func BenchmarkWrite(b *testing.B) {
	for b.Loop() {
		w, err := etcdfile.Create(filepath.Join(b.TempDir(), "f"), etcdfile.Options{})
		if err != nil {
			b.Fatal(err)
		}
		done, err := snapshot.Copy(b.Context(), w, made{1_000_000}, nil)
		if err != nil {
			b.Fatal(err)
		}
		b.SetBytes(done.Bytes)
	}
}
