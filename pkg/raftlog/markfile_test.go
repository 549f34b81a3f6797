package raftlog

import (
	"bytes"
	"errors"
	"os"
	"reflect"
	"testing"

	"github.com/keelson-io/keelson/pkg/eventlog"
)

// TestMarkFile: no bit of what stands beside a mark can change unnoticed.
func TestMarkFile(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	want := markFile{
		Members: Members{
			Members: []Member{{ID: 1, Name: "a", PeerURLs: []string{"http://a"}}, {ID: 2, PeerURLs: []string{"http://b"}, Learner: true}},
			Removed: []uint64{3},
		},
		Position: new(eventlog.Position(4)),
	}
	if err := want.write(dir, 5); err != nil {
		t.Fatal(err)
	}
	want, err := readMark(dir, 5)
	if err != nil {
		t.Fatal(err)
	}
	whole, err := os.ReadFile(membersFile(dir, 5))
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(whole)*8; i += Sparse {
		damaged := bytes.Clone(whole)
		damaged[i/8] ^= 1 << (i % 8)
		if err := os.WriteFile(membersFile(dir, 5), damaged, 0o600); err != nil {
			t.Fatal(err)
		}
		got, err := readMark(dir, 5)
		if err != nil && !errors.Is(err, eventlog.ErrCorrupt) || err == nil && !reflect.DeepEqual(got, want) {
			t.Errorf("with bit %d of byte %d wrong: %+v, %v", i%8, i/8, got, err)
		}
	}
}
