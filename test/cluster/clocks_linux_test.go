package cluster

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/keelson-io/keelson/test/harness"
	"github.com/keelson-io/keelson/test/internal/faults"
)

// TestClocks: the clocks of nodes may differ as much as they like. Those of
// these differ by years, as what has been up for so long, and leases expire as
// ever when another node becomes the one that expires them.
func TestClocks(t *testing.T) {
	t.Parallel() // it waits, mostly
	if out, err := exec.Command("unshare", "--time", "--monotonic", "1", "true").CombinedOutput(); err != nil {
		t.Skipf("only root may give processes other clocks, where the kernel can: %v: %s", err, out)
	}
	dir := harness.TempDir(t)
	c := startClusterOf(t, 3, func(i int) string {
		path := filepath.Join(dir, fmt.Sprint("n", i))
		later := i * 3 * 365 * 24 * 60 * 60
		script := fmt.Sprintf("#!/bin/sh\nexec unshare --time --monotonic %d --boottime %d '%s' \"$@\"\n", later, later, harness.KeelsonBinary(t))
		if err := os.WriteFile(path, []byte(script), 0o700); err != nil {
			t.Error(err)
		}
		return path
	})
	load := c.startLoad(faults.StartLoad(t, faults.NewRandom(t)), c.nodes...)
	testLessor(c, func(_ *cluster, leader *node) { leader.Kill() }, func(_ *cluster, leader *node) { leader.Restart() })
	c.finish(load, c.nodes...)
}

// wallClock are the places in what a node runs that see the wall clock, which
// may jump: no other machine's can be seen from here, and that of this one is
// not to be set. Times that Go's time.Now returns are compared by the monotonic
// clock unless they were made of such numbers.
var wallClock = map[string]string{
	"embed/cluster.go:UnixNano":             "the id of a new member is to be another one than before",
	"drivers/sqlite/lock.go:UTC":            "for people",
	"drivers/sqlite/checkpoint.go:UnixNano": "an idle database is checkpointed a little earlier or later",
	"drivers/sqlite/checkpoint.go:Unix":     "the same",
	"drivers/sqlite/scan.go:Unix":           "a page of a scan is read ahead, or is not",
}

// TestNoWallClock makes sure that these are all.
func TestNoWallClock(t *testing.T) {
	found := map[string]bool{}
	root := filepath.Join("..", "..", "pkg")
	for _, dir := range []string{"raftlog", "embed", "lease", "store", "watch", "server", "eventlog", "cowtree", "drivers/sqlite"} {
		files, err := filepath.Glob(filepath.Join(root, dir, "*.go"))
		if err != nil || len(files) == 0 {
			t.Fatalf("there is no source in %s: %v", dir, err)
		}
		for _, file := range files {
			if strings.HasSuffix(file, "_test.go") {
				continue
			}
			parsed, err := parser.ParseFile(token.NewFileSet(), file, nil, 0)
			if err != nil {
				t.Fatal(err)
			}
			name, _ := filepath.Rel(root, file)
			ast.Inspect(parsed, func(n ast.Node) bool {
				if s, ok := n.(*ast.SelectorExpr); ok && losesMonotonic[s.Sel.Name] {
					found[name+":"+s.Sel.Name] = true
				}
				return true
			})
		}
	}
	for place := range found {
		if wallClock[place] == "" {
			t.Errorf("%s: a time without its monotonic clock", place)
		}
	}
	for place := range wallClock {
		if !found[place] {
			t.Errorf("%s is not there any more", place)
		}
	}
}

// losesMonotonic are the functions and methods of package time after which the
// monotonic clock is gone.
var losesMonotonic = map[string]bool{
	"Unix": true, "UnixNano": true, "UnixMilli": true, "UnixMicro": true, "Date": true,
	"UTC": true, "Local": true, "In": true, "AddDate": true,
}
