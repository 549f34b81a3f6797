package harness

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
)

// Versions of the programs that keelson is tested against. They name the
// cached files, and they are the versions that the modules require.
const (
	EtcdVersion = "v3.7.3"
	KubeVersion = "v1.36.3"
	KineVersion = "v0.16.4"
)

const rootModule = "module github.com/keelson-io/keelson\n"

// tool says how one program is built.
type tool struct {
	module  string // directory of the module to build in, below the checkout
	pkg     string
	version string
	ldflags string
	env     []string
}

var kubeLdflags = "-s -w" +
	" -X k8s.io/component-base/version.gitVersion=" + KubeVersion +
	" -X k8s.io/component-base/version.gitMajor=1" +
	" -X k8s.io/component-base/version.gitMinor=36" +
	" -X k8s.io/component-base/version.gitTreeState=clean" +
	" -X k8s.io/client-go/pkg/version.gitVersion=" + KubeVersion

var tools = map[string]tool{
	"etcd":           {"test/tools/etcd", "go.etcd.io/etcd/server/v3", EtcdVersion, "-s -w", nil},
	"etcdctl":        {"test/tools/etcd", "go.etcd.io/etcd/etcdctl/v3", EtcdVersion, "-s -w", nil},
	"etcdutl":        {"test/tools/etcd", "go.etcd.io/etcd/etcdutl/v3", EtcdVersion, "-s -w", nil},
	"kube-apiserver": {"test/apiserver", "k8s.io/kubernetes/cmd/kube-apiserver", KubeVersion, kubeLdflags, nil},
	"kubectl":        {"test/apiserver", "k8s.io/kubernetes/cmd/kubectl", KubeVersion, kubeLdflags, nil},
	// As kine's own releases are built: without cgo it has another SQLite.
	"kine": {"bench/tools/kine", "github.com/k3s-io/kine", KineVersion, "-s -w", []string{"CGO_ENABLED=1", "CGO_CFLAGS=-O2 -DSQLITE_USE_ALLOCA=1"}},
}

// ToolNames returns the programs that BuildTool can build, in order.
func ToolNames() []string { return slices.Sorted(maps.Keys(tools)) }

// Tool returns the path of the named program (etcd, etcdctl, etcdutl,
// kube-apiserver, kubectl, kine), built from its Go module if the cache does not have it yet.
func Tool(t testing.TB, name string) string {
	t.Helper()
	path, err := BuildTool(name)
	if err != nil {
		t.Fatalf("building %s: %v", name, err)
	}
	return path
}

// BuildTool is Tool for callers outside a test.
func BuildTool(name string) (string, error) {
	spec, ok := tools[name]
	if !ok {
		return "", fmt.Errorf("no tool is called %q", name)
	}
	bin, err := binDir()
	if err != nil {
		return "", err
	}
	path := filepath.Join(bin, name+"-"+spec.version)
	if _, err := os.Stat(path); err == nil {
		return path, nil
	}
	root, err := Root()
	if err != nil {
		return "", err
	}
	args := []string{"-trimpath", "-ldflags", spec.ldflags, spec.pkg}
	return path, goBuild(filepath.Join(root, spec.module), path, spec.env, args...)
}

var built struct {
	once sync.Once
	path string
	err  error
}

// KeelsonBinary returns the path of the checkout's keelson, built once per test
// process so that no test runs against an older one, or KEELSON_BINARY.
func KeelsonBinary(t testing.TB) string {
	t.Helper()
	built.once.Do(func() { built.path, built.err = buildKeelson() })
	if built.err != nil {
		t.Fatalf("building keelson: %v", built.err)
	}
	return built.path
}

func buildKeelson() (string, error) {
	if path := os.Getenv("KEELSON_BINARY"); path != "" {
		return filepath.Abs(path)
	}
	root, err := Root()
	if err != nil {
		return "", err
	}
	bin, err := binDir()
	if err != nil {
		return "", err
	}
	if os.Getenv("KEELSON_RACE") != "" {
		path := filepath.Join(bin, "keelson-race")
		return path, goBuild(root, path, nil, "-race", ".")
	}
	path := filepath.Join(bin, "keelson")
	return path, goBuild(root, path, nil, ".")
}

// goBuild builds to a name of its own and renames, since test processes that
// run at the same time may build the same program.
func goBuild(dir, out string, env []string, args ...string) error {
	f, err := os.CreateTemp(filepath.Dir(out), filepath.Base(out)+".*.tmp")
	if err != nil {
		return err
	}
	tmp := f.Name()
	if err := f.Close(); err != nil {
		return err
	}
	defer func() { _ = os.Remove(tmp) }()
	cmd := exec.Command("go", append([]string{"build", "-o", tmp}, args...)...)
	cmd.Dir = dir
	// A go.work of the caller must not choose the dependencies.
	cmd.Env = append(append(os.Environ(), "GOWORK=off"), env...)
	if output, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("go build in %s: %w\n%s", dir, err, output)
	}
	if err := os.Chmod(tmp, 0o755); err != nil {
		return err
	}
	return os.Rename(tmp, out)
}

func binDir() (string, error) {
	cache := os.Getenv("KEELSON_CACHE")
	if cache == "" {
		home, err := os.UserHomeDir()
		if err != nil {
			return "", err
		}
		cache = filepath.Join(home, ".cache", "keelson")
	}
	bin, err := filepath.Abs(filepath.Join(cache, "bin"))
	if err != nil {
		return "", err
	}
	return bin, os.MkdirAll(bin, 0o755)
}

// Root returns the checkout: the directory above the working directory whose
// go.mod is keelson's own.
func Root() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for {
		mod, err := os.ReadFile(filepath.Join(dir, "go.mod"))
		if err == nil && strings.HasPrefix(string(mod), rootModule) {
			return dir, nil
		}
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return "", err
		}
		parent := filepath.Dir(dir)
		if parent == dir {
			return "", errors.New("the working directory is not inside a keelson checkout")
		}
		dir = parent
	}
}
