package sqlite

import (
	"bytes"
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/keelson-io/keelson/pkg/eventlog"
)

// TestVerifyFree: damage to the list of free pages and to the pointer maps is
// refused where a database is verified.
func TestVerifyFree(t *testing.T) {
	dir := t.TempDir()
	l := mustOpen(t, dir)
	appendRandom(t, l, 1000, 1000)
	appendRandom(t, l, 1000, 9000)
	var seqs []int64
	for seq := int64(101); seq < 1950; seq++ {
		if seq%5 > 0 {
			seqs = append(seqs, seq)
		}
	}
	l.writerDo(t, func() { l.markSeq = l.headSeq }) // as if it were one
	if err := compactAtOnce(l, seqs); err != nil {
		t.Fatal(err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, FileName)
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	number := func(at int) int { return int(binary.BigEndian.Uint32(whole[at:])) }
	trunk := (number(32) - 1) * pageSize
	if number(trunk) == 0 || number(trunk+4) < 10 || len(whole) < 2*pageSize*mappedPages {
		t.Fatalf("%d pages are free, %d of them on the first trunk, of %d", number(36), number(trunk+4), len(whole)/pageSize)
	}
	set := func(at, to int) func([]byte) {
		return func(b []byte) { binary.BigEndian.PutUint32(b[at:], uint32(to)) }
	}
	kindOf := func(page int) int { // where it is
		at := firstMap + (page-firstMap)/(mappedPages+1)*(mappedPages+1)
		return (at-1)*pageSize + pointerSize*(page-at-1)
	}
	leaf, used := number(trunk+8), firstMap+1
	for whole[kindOf(used)] != childPointer {
		used++
	}
	for name, damage := range map[string]func([]byte){
		"none":                        func([]byte) {},
		"a page in use is free":       set(trunk+8, used),
		"a pointer map is free":       set(trunk+8, firstMap),
		"the first page is free":      set(trunk+8, 1),
		"one beyond the end is free":  set(trunk+8, len(whole)/pageSize+1),
		"a free page is there twice":  set(trunk+12, leaf),
		"there is one trunk":          set(trunk, 0),
		"the trunks lead back":        set(trunk, number(32)),
		"the list is longer":          set(trunk+4, pageSize),
		"the list is shorter":         set(trunk+4, number(trunk+4)-1),
		"the count is wrong":          set(36, number(36)+1),
		"the list is lost":            func(b []byte) { clear(b[32:40]) },
		"a map has it in use":         func(b []byte) { b[kindOf(leaf)] = childPointer },
		"a map has one in use free":   func(b []byte) { b[kindOf(used)] = freePointer },
		"the list begins at a record": set(32, used),
	} {
		t.Run(name, func(t *testing.T) {
			damaged := bytes.Clone(whole)
			damage(damaged)
			if err := os.WriteFile(path, damaged, 0o600); err != nil {
				t.Fatal(err)
			}
			l := mustOpen(t, dir)
			defer l.Close()
			if _, err := l.verify(t.Context()); errors.Is(err, eventlog.ErrCorrupt) != (name != "none") || name == "none" && err != nil {
				t.Errorf("verify: %v", err)
			}
		})
	}
}

// TestVerifyImported: what an import makes of pages is verified, too.
func TestVerifyImported(t *testing.T) {
	dir := t.TempDir()
	if err := importPuts(ImportOptions{Dir: dir}, 1000, strings.Repeat("v", 9000), (*Importer).Finish); err != nil {
		t.Fatal(err)
	}
	l := mustOpen(t, dir)
	defer l.Close()
	if head, err := l.verify(t.Context()); err != nil || head.Seq != 1000 {
		t.Errorf("verify: %+v, %v", head, err)
	}
}
