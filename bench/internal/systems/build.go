package systems

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"

	"github.com/keelson-io/keelson/test/harness"
)

// Versions of the systems that keelson is compared with.
const (
	EtcdVersion = harness.EtcdVersion
	KineVersion = "v0.16.4"
)

// Build returns the program of a system, built unless the cache has it.
// keelson is built into dir each time, as it is released, so that another
// build of the checkout cannot change a run under way.
func (s System) Build(cache, dir string) (string, error) {
	switch s.program {
	case "etcd":
		return harness.BuildTool("etcd")
	case "floor":
		return os.Executable()
	case "kine":
		return buildKine(filepath.Join(cache, "bin", "kine-"+KineVersion))
	default:
		return buildKeelson(filepath.Join(dir, "keelson"))
	}
}

// buildKine builds with cgo and the C compiler's flags of kine's own releases:
// without cgo it would use another, slower SQLite.
func buildKine(path string) (string, error) {
	if _, err := os.Stat(path); err == nil {
		return path, nil
	}
	root, err := harness.Root()
	if err != nil {
		return "", err
	}
	env := []string{"CGO_ENABLED=1", "CGO_CFLAGS=-O2 -DSQLITE_USE_ALLOCA=1"}
	return path, goBuild(filepath.Join(root, "bench", "tools", "kine"), path, env, "github.com/k3s-io/kine")
}

func buildKeelson(path string) (string, error) {
	if path := os.Getenv("KEELSON_BINARY"); path != "" {
		return filepath.Abs(path)
	}
	root, err := harness.Root()
	if err != nil {
		return "", err
	}
	return path, goBuild(root, path, []string{"CGO_ENABLED=0"}, ".")
}

func goBuild(dir, out string, env []string, pkg string) error {
	if err := os.MkdirAll(filepath.Dir(out), 0o755); err != nil {
		return err
	}
	tmp := fmt.Sprintf("%s.%d.tmp", out, os.Getpid())
	defer func() { _ = os.Remove(tmp) }()
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", tmp, pkg)
	cmd.Dir = dir
	// A go.work of the caller must not choose the dependencies.
	cmd.Env = append(append(os.Environ(), "GOWORK=off"), env...)
	if output, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("go build %s in %s: %w\n%s", pkg, dir, err, output)
	}
	return os.Rename(tmp, out)
}
