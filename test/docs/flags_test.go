package docs

import (
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/keelson-io/keelson/test/harness"
	"github.com/keelson-io/keelson/test/internal/docspage"
)

// commands are keelson's.
var commands = []string{"", "snapshot", "snapshot save", "snapshot status", "snapshot restore", "import", "export", "verify", "check", "version"}

// runBy says which test takes all the commands of a page.
var runBy = map[string]struct{ file, name string }{
	"README.md":         {"test/docs/readme_test.go", "TestReadme"},
	"docs/backup.md":    {"pkg/cmd/backup_page_test.go", "TestBackupPage"},
	"docs/cluster.md":   {"test/docs/cluster_test.go", "TestClusterPage"},
	"docs/migration.md": {"test/transfer/page_test.go", "TestMigrationPage"},
	"docs/postgres.md":  {"test/docs/postgres_test.go", "TestPostgresPage"},
}

// foreign are the flags that pages name without the program, whose they are.
var foreign = map[string]string{
	"cluster-init":             "k3s",
	"datastore-endpoint":       "kine and k3s",
	"etcd-compaction-interval": "kube-apiserver",
	"initial":                  "what names of flags begin with",
}

var (
	listed   = regexp.MustCompile(`(?m)^ +(?:-\w, )?--([a-z0-9-]+)`)
	named    = regexp.MustCompile(`(?:^|[ ('"])--([a-z0-9][a-z0-9-]*)`)
	bare     = regexp.MustCompile("`(--[^`]+)`")
	variable = regexp.MustCompile(`\bKEELSON_([A-Z0-9_]*[A-Z0-9])\b`)
	// invoked is a command of keelson's and its flags; where several words are
	// commands of it, those.
	invoked = regexp.MustCompile(`(?:^|[ \x60]|bin/)keelson((?: (?:snapshot|save|status|restore|import|export|verify|check|version)\b)*)((?: [^\x60|#;&]*)?)`)
)

// flagsOf returns the flags that the help of a command lists, and the help.
func flagsOf(t *testing.T, command string) (flags map[string]bool, help string) {
	t.Helper()
	out, err := exec.Command(harness.KeelsonBinary(t), append(strings.Fields(command), "--help")...).Output()
	if err != nil {
		t.Fatalf("keelson %s --help: %v", command, err)
	}
	flags = map[string]bool{"help": true}
	for _, found := range listed.FindAllStringSubmatch(string(out), -1) {
		flags[found[1]] = true
	}
	return flags, string(out)
}

// TestFlags: every flag that a page or a help names is one that the help of its
// command has, or that of any where no command is named; so with variables.
func TestFlags(t *testing.T) {
	t.Parallel()
	known, all := map[string]map[string]bool{}, map[string]bool{}
	texts := map[string][]string{} // commands by where they are
	helps := ""
	for _, command := range commands {
		flags, help := flagsOf(t, command)
		known[command] = flags
		maps.Copy(all, flags)
		helps += help
		name := strings.TrimSpace("keelson " + command)
		texts[name+" --help"] = strings.Split(strings.ReplaceAll(help, "\\\n", ""), "\n")
	}
	unused := maps.Clone(foreign)
	for _, page := range pages(t) {
		text := docspage.Read(t, page)
		blocks, inline := docspage.Commands(text)
		texts[page] = append(blocks, inline...)
		for _, span := range bare.FindAllStringSubmatch(text, -1) {
			for _, flag := range named.FindAllStringSubmatch(span[1], -1) {
				if !all[flag[1]] && foreign[flag[1]] == "" {
					t.Errorf("%s: no command has --%s", page, flag[1])
				}
				delete(unused, flag[1])
			}
		}
		for _, found := range variable.FindAllStringSubmatch(text, -1) {
			if !all[strings.ToLower(strings.ReplaceAll(found[1], "_", "-"))] && !strings.Contains(helps, found[0]) {
				t.Errorf("%s: there is no %s", page, found[0])
			}
		}
	}
	for name := range unused {
		t.Errorf("no page names --%s", name)
	}
	checked := 0
	for name, lines := range texts {
		for _, line := range lines {
			for _, found := range invoked.FindAllStringSubmatch(line, -1) {
				for _, flag := range named.FindAllStringSubmatch(found[2], -1) {
					if checked++; !known[strings.TrimSpace(found[1])][flag[1]] {
						t.Errorf("%s: %q: there is no --%s", name, line, flag[1])
					}
				}
			}
		}
	}
	if checked < 200 {
		t.Errorf("only %d flags of commands were checked", checked)
	}
}

// metric is one that a page names, or its end, where the text has the beginning.
var metric = regexp.MustCompile(`\b((?:keelson|etcd)_[a-z_]+)|…(_[a-z_]+)`)

// ofClusters are the metrics that only nodes of clusters have.
var ofClusters = []string{"keelson_uncompared_nodes_total"}

// metricsAre checks that the metrics which pages name are there, those of clusters
// or the others.
func metricsAre(t *testing.T, metrics string, cluster bool) {
	t.Helper()
	metrics = strings.ReplaceAll(metrics, "{", " ")
	for _, page := range pages(t) {
		for _, found := range metric.FindAllStringSubmatch(docspage.Read(t, page), -1) {
			name := found[1] + found[2]
			if slices.Contains(ofClusters, name) == cluster && !strings.Contains(metrics, name+" ") {
				t.Errorf("%s: there is no metric %s", page, found[0])
			}
		}
	}
}

// TestPages: every page that has commands is run by a test.
func TestPages(t *testing.T) {
	t.Parallel()
	root, err := harness.Root()
	check(t, err)
	for _, page := range pages(t) {
		if blocks, _ := docspage.Commands(docspage.Read(t, page)); len(blocks) == 0 {
			continue
		}
		test, ok := runBy[page]
		if !ok {
			t.Errorf("nothing runs %s", page)
			continue
		}
		source, err := os.ReadFile(filepath.Join(root, test.file))
		check(t, err)
		if !strings.Contains(string(source), "\nfunc "+test.name+"(t *testing.T) {\n") || !strings.Contains(string(source), filepath.Base(page)) {
			t.Errorf("%s has no %s for %s", test.file, test.name, page)
		}
	}
}

var (
	target = regexp.MustCompile(`\]\(([^)#:]*)(?:#([^)]*))?\)`)
	title  = regexp.MustCompile(`(?m)^#+ (.*)$`)
	noMark = regexp.MustCompile(`[^a-z0-9 -]`)
)

// TestLinks: what pages link to in the checkout is there, sections too.
func TestLinks(t *testing.T) {
	t.Parallel()
	root, err := harness.Root()
	check(t, err)
	for _, page := range pages(t) {
		for _, found := range target.FindAllStringSubmatch(docspage.Read(t, page), -1) {
			file := page
			if found[1] != "" {
				file = filepath.Join(filepath.Dir(page), found[1])
			}
			if _, err := os.Stat(filepath.Join(root, file)); err != nil {
				t.Errorf("%s links to %s: %v", page, found[0], err)
				continue
			}
			there := found[2] == ""
			if !there {
				for _, line := range title.FindAllStringSubmatch(docspage.Read(t, file), -1) {
					there = there || strings.ReplaceAll(noMark.ReplaceAllString(strings.ToLower(line[1]), ""), " ", "-") == found[2]
				}
			}
			if !there {
				t.Errorf("%s links to %s, which has no such section", page, found[0])
			}
		}
	}
}

// pages are the files of the documentation.
func pages(t *testing.T) []string {
	t.Helper()
	root, err := harness.Root()
	check(t, err)
	files, err := filepath.Glob(filepath.Join(root, "docs", "*.md"))
	check(t, err)
	names := []string{"README.md"}
	for _, file := range files {
		names = append(names, "docs/"+filepath.Base(file))
	}
	return names
}
