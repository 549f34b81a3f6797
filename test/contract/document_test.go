package contract

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/keelson-io/keelson/test/harness"
)

var (
	shownBy  = regexp.MustCompile("`(?:((?:pkg|test)/[a-z/]+) )?(Test[A-Za-z0-9]+)(/[a-z0-9_]+)?`|`/([a-z0-9_]+)`")
	tableRow = regexp.MustCompile(`(?m)^\| .*\|$`)
	heading  = regexp.MustCompile(`^\| (what|etcd) \|`)
)

// TestDocument checks that each line of docs/compatibility.md names tests, that
// they exist, and that it leaves none of this package's out.
func TestDocument(t *testing.T) {
	root, err := harness.Root()
	if err != nil {
		t.Fatal(err)
	}
	document, err := os.ReadFile(filepath.Join(root, "docs", "compatibility.md"))
	if err != nil {
		t.Fatal(err)
	}
	named := map[string]bool{}
	rows := tableRow.FindAllString(string(document), -1)
	if len(rows) < 40 {
		t.Fatalf("there are only %d rows", len(rows))
	}
	for _, row := range rows {
		cells := strings.Split(strings.Trim(row, "| "), " | ")
		last := cells[len(cells)-1]
		found := shownBy.FindAllStringSubmatch(last, -1)
		if len(found) == 0 && !heading.MatchString(row) {
			t.Errorf("no test shows this: %s", row)
		}
		if rest := strings.Trim(shownBy.ReplaceAllString(last, ""), ", "); rest != "" && !heading.MatchString(row) {
			t.Errorf("not a test: %q", rest)
		}
		var dir string
		for _, f := range found {
			sub := f[4]
			if f[1] != "" { // else it is beside the one before
				dir = filepath.Join(root, f[1])
			}
			if f[2] != "" {
				sub = strings.TrimPrefix(f[3], "/")
				exists(t, dir, "\nfunc "+f[2]+"(t *testing.T)")
			}
			if sub != "" {
				exists(t, dir, `"`+sub+`"`)
				named[sub] = true
			}
		}
	}
	for _, s := range statements() {
		if !named[s.name] {
			t.Errorf("%s is not in the document", s.name)
		}
	}
	for _, s := range clusters {
		if !named[s.name] {
			t.Errorf("%s is not in the document", s.name)
		}
	}
	for _, d := range differences {
		if !named[d.name] {
			t.Errorf("%s is not in the document", d.name)
		}
	}
}

// exists checks that a text is in one of the tests of a package, or that a name
// in quotes is that of a file of theirs.
func exists(t *testing.T, dir, text string) {
	t.Helper()
	if found, err := filepath.Glob(filepath.Join(dir, "testdata", "*", strings.Trim(text, `"`)+".*")); err == nil && len(found) > 0 {
		return
	}
	files, err := filepath.Glob(filepath.Join(dir, "*_test.go"))
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range files {
		source, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(string(source), text) {
			return
		}
	}
	t.Errorf("%q is in no test of %s", strings.TrimSpace(text), dir)
}
