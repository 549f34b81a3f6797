package main

import (
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// TestDirectModules: go.mod marks as indirect what no package here imports, and
// nothing else.
func TestDirectModules(t *testing.T) {
	data, err := os.ReadFile("go.mod")
	if err != nil {
		t.Fatal(err)
	}
	indirect := make(map[string]bool) // by module
	for line := range strings.Lines(string(data)) {
		line, comment, _ := strings.Cut(line, "//")
		if fields := strings.Fields(line); len(fields) == 2 && strings.HasPrefix(fields[1], "v") {
			indirect[fields[0]] = strings.TrimSpace(comment) == "indirect"
		}
	}
	imported := importedModules(t, indirect)
	for module, marked := range indirect {
		if marked == imported[module] {
			t.Errorf("%s: marked as indirect %v, imported %v", module, marked, imported[module])
		}
	}
}

// importedModules returns which of the modules the packages of this one import,
// tests among them.
func importedModules(t *testing.T, known map[string]bool) map[string]bool {
	t.Helper()
	imported := make(map[string]bool)
	err := filepath.WalkDir(".", func(file string, entry fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case entry.IsDir() && file != ".":
			if _, err := os.Stat(filepath.Join(file, "go.mod")); err == nil || strings.HasPrefix(entry.Name(), ".") {
				return fs.SkipDir // another module's
			}
			return nil
		case filepath.Ext(file) != ".go":
			return nil
		}
		parsed, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.ImportsOnly)
		if err != nil {
			return err
		}
		for _, i := range parsed.Imports {
			name, err := strconv.Unquote(i.Path.Value)
			if err != nil {
				return err
			}
			for module := name; module != "."; module = path.Dir(module) { // the longest one has it
				if _, ok := known[module]; ok {
					imported[module] = true
					break
				}
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return imported
}
