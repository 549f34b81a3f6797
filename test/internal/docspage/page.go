// Package docspage runs the commands of the documentation. A test reads a page, takes
// its commands one after the other and runs them on machines, which are
// directories here:
//
//	page := docspage.Open(t, "docs/cluster.md")
//	m := docspage.NewMachine(t, []string{"etcdctl"}, "10.0.0.1", address)
//	m.Run(page.Take(t, "Grow from one node", "etcdctl member list"))
//
// A command runs as it stands on the page. What cannot be the same here (host
// names, paths, what the page leaves out) is in the machine's table, and a command
// that has more of it fails. A command that no test takes fails, too.
package docspage

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/keelson-io/keelson/test/harness"
)

// Page is a page of the documentation.
type Page struct {
	name string

	mu sync.Mutex
	// Guarded by mu.
	left []command // not taken yet
}

// command is one of a page: a line of a block, with those that it goes on in, or a
// command in the text.
type command struct {
	section string // the heading above it
	text    string
	inline  bool // in the text
}

var (
	heading = regexp.MustCompile(`^#+ (.*)$`)
	span    = regexp.MustCompile("`([^`]+)`")
	spaces  = regexp.MustCompile(`\s+`)
	// inText is a command in the text: a program with arguments. kill, make and
	// names of commands without any are none.
	inText = regexp.MustCompile(`^(keelson|etcdctl|etcdutl|systemctl|runuser|chown|aws|k3s|pg_dump|pg_restore|psql|sqlite3|curl) \S`)
)

// Open reads a page, or some sections of it, if they are given. All commands there
// are must be taken before t ends.
func Open(t testing.TB, name string, sections ...string) *Page {
	t.Helper()
	p := &Page{name: name}
	for _, c := range commands(Read(t, name)) {
		if len(sections) == 0 || slices.Contains(sections, c.section) {
			p.left = append(p.left, c)
		}
	}
	if len(p.left) == 0 {
		t.Fatalf("%s has no commands in %q", name, sections)
	}
	t.Cleanup(func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		for _, c := range p.left {
			if !t.Failed() {
				t.Errorf("%s, %q: nothing runs %q", name, c.section, c.text)
			}
		}
	})
	return p
}

// Commands returns the commands of a text: those of its blocks, and the others.
func Commands(text string) (blocks, inline []string) {
	for _, c := range commands(text) {
		if c.inline {
			inline = append(inline, c.text)
		} else {
			blocks = append(blocks, c.text)
		}
	}
	return blocks, inline
}

// Read returns the text of a page.
func Read(t testing.TB, name string) string {
	t.Helper()
	root, err := harness.Root()
	check(t, err)
	text, err := os.ReadFile(filepath.Join(root, name))
	check(t, err)
	return string(text)
}

// commands returns the commands of a text: the lines of its blocks, indented by
// four or fenced, without those that are comments; and what is in the text, once.
func commands(text string) (all []command) {
	section, fenced := "", false
	var prose strings.Builder
	endOfProse := func() {
		for _, found := range span.FindAllStringSubmatch(prose.String(), -1) {
			c := command{section: section, text: spaces.ReplaceAllString(found[1], " "), inline: true}
			known := slices.ContainsFunc(all, func(other command) bool { return other.text == c.text })
			if inText.MatchString(c.text) && !known {
				all = append(all, c)
			}
		}
		prose.Reset()
	}
	for line := range strings.Lines(strings.ReplaceAll(text, "\\\n", "")) {
		line = strings.TrimRight(line, "\n")
		inBlock, indented := strings.CutPrefix(line, "    ")
		switch title := heading.FindStringSubmatch(line); {
		case strings.HasPrefix(line, "```"):
			fenced = !fenced
		case !fenced && title != nil:
			endOfProse()
			section = title[1]
		case !fenced && !indented:
			prose.WriteString(line + "\n")
		default:
			endOfProse()
			if !indented {
				inBlock = line
			}
			inBlock = strings.TrimSpace(inBlock)
			if inBlock != "" && !strings.HasPrefix(inBlock, "#") {
				all = append(all, command{section: section, text: inBlock})
			}
		}
	}
	endOfProse()
	return all
}

// Take returns the first command of a section that begins with prefix and was not
// taken yet.
func (p *Page) Take(t testing.TB, section, prefix string) string {
	t.Helper()
	p.mu.Lock()
	defer p.mu.Unlock()
	for i, c := range p.left {
		if c.section == section && strings.HasPrefix(c.text, prefix) {
			p.left = slices.Delete(p.left, i, i+1)
			return c.text
		}
	}
	t.Fatalf("%s has no (other) command %q in %q", p.name, prefix, section)
	return ""
}

// Leave takes commands of a section that no test can run, by their beginnings.
func (p *Page) Leave(t testing.TB, reason, section string, prefixes ...string) {
	t.Helper()
	for _, prefix := range prefixes {
		t.Logf("%s: not run, since %s: %s", p.name, reason, p.Take(t, section, prefix))
	}
}

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
