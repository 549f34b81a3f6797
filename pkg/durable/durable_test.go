package durable_test

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"github.com/keelson-io/keelson/pkg/durable"
)

func TestWriteAndRewrite(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	if err := durable.Rewrite(path); err != nil {
		t.Errorf("Rewrite of no file: %v", err)
	}
	for _, size := range []int{0, 3, 1 << 20, 1<<20 + 5} {
		data := bytes.Repeat([]byte{7}, size)
		if err := durable.Write(path, data); err != nil {
			t.Fatalf("Write of %d bytes: %v", size, err)
		}
		if err := durable.Rewrite(path); err != nil {
			t.Fatalf("Rewrite of %d bytes: %v", size, err)
		}
		got, err := os.ReadFile(path)
		if err != nil || !bytes.Equal(got, data) {
			t.Errorf("%d bytes are read, %v; %d were written", len(got), err, size)
		}
	}
	entries, err := os.ReadDir(filepath.Dir(path))
	if err != nil || len(entries) != 1 {
		t.Errorf("%d files are left, %v; want one", len(entries), err)
	}
	if err := durable.Sync(path + ".not"); err == nil {
		t.Error("Sync of no file")
	}
}
