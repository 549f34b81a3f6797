package hostile

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/keelson-io/keelson/test/harness"
)

var (
	row     = regexp.MustCompile(`(?m)^\| .* \|$`)
	shownBy = regexp.MustCompile("`(?:((?:pkg|test)/[a-z/]+) (Test[A-Za-z0-9]+))?(?:/([^ `]+))?`")
)

// TestDocument checks that each line of docs/limits.md names tests, and that
// they exist.
func TestDocument(t *testing.T) {
	root, err := harness.Root()
	must(t, err)
	document, err := os.ReadFile(filepath.Join(root, "docs", "limits.md"))
	must(t, err)
	rows := row.FindAllString(string(document), -1)
	if len(rows) < 40 {
		t.Fatalf("there are only %d rows", len(rows))
	}
	for _, line := range rows {
		cells := strings.Split(strings.Trim(line, "| "), " | ")
		last := cells[len(cells)-1]
		if last == "shown by" {
			continue
		}
		found := shownBy.FindAllStringSubmatch(last, -1)
		if rest := strings.Trim(shownBy.ReplaceAllString(last, ""), ", "); len(found) == 0 || rest != "" {
			t.Errorf("no test shows this: %s", line)
		}
		var tests string // the sources of the package named last
		for _, f := range found {
			if f[1] != "" {
				tests = sources(t, filepath.Join(root, f[1]))
				if !strings.Contains(tests, "\nfunc "+f[2]+"(t *testing.T)") {
					t.Errorf("%s has no %s", f[1], f[2])
				}
			}
			// What is a blank in the source is an underscore in a test's name.
			if sub := `"` + f[3] + `"`; f[3] != "" && !strings.Contains(tests, sub) && !strings.Contains(tests, strings.ReplaceAll(sub, "_", " ")) {
				t.Errorf("there is no subtest %s", sub)
			}
		}
	}
}

func sources(t *testing.T, dir string) string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "*_test.go"))
	must(t, err)
	var all strings.Builder
	for _, name := range files {
		source, err := os.ReadFile(name)
		must(t, err)
		all.Write(source)
	}
	return all.String()
}
