package config

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/pflag"
	"go.yaml.in/yaml/v3"
)

// fileValue is a setting of the file as a flag would take it.
type fileValue struct {
	text string
	line int
}

// readFile reads a YAML (or JSON) mapping of flag names to values; a list may
// be a YAML list or text with commas. All that is wrong is reported at once.
func readFile(path string, fs *pflag.FlagSet) (map[string]fileValue, error) {
	content, err := os.ReadFile(path)
	if err != nil {
		return nil, Usagef("--config-file: %s", err)
	}
	var doc yaml.Node
	dec := yaml.NewDecoder(bytes.NewReader(content))
	if err := dec.Decode(&doc); errors.Is(err, io.EOF) {
		return nil, nil // nothing but comments
	} else if err != nil {
		return nil, Usagef("%s: %s", path, err)
	}
	if err := dec.Decode(new(yaml.Node)); !errors.Is(err, io.EOF) {
		return nil, Usagef("%s: write one YAML document, not several", path)
	}
	root := doc.Content[0]
	if root.Kind == yaml.ScalarNode && root.Tag == "!!null" {
		return nil, nil
	}
	if root.Kind != yaml.MappingNode {
		return nil, Usagef("%s, line %d: write a mapping such as \"data-dir: /var/lib/keelson\"", path, root.Line)
	}
	var (
		values = make(map[string]fileValue)
		errs   []string
	)
	for i := 0; i+1 < len(root.Content); i += 2 {
		key, value := root.Content[i], root.Content[i+1]
		text, err := fileSetting(key.Value, value, fs)
		if previous, twice := values[key.Value]; err == nil && twice {
			err = fmt.Errorf("%s is there twice, first in line %d", key.Value, previous.line)
		}
		if err != nil {
			errs = append(errs, fmt.Sprintf("%s, line %d: %s", path, key.Line, err))
			continue
		}
		values[key.Value] = fileValue{text, key.Line}
	}
	if len(errs) > 0 {
		return nil, usageLines(errs)
	}
	return values, nil
}

func fileSetting(name string, value *yaml.Node, fs *pflag.FlagSet) (string, error) {
	if f := fs.Lookup(name); f == nil || name == "config-file" || name == "help" || name == "version" {
		return "", unknownKey(name, fs)
	}
	if value.Kind == yaml.AliasNode {
		value = value.Alias
	}
	switch value.Kind {
	case yaml.ScalarNode:
		if value.Tag == "!!null" {
			return "", fmt.Errorf("%s has no value: give one or remove the line", name)
		}
		return value.Value, nil
	case yaml.SequenceNode:
		if fs.Lookup(name).Value.Type() != listType {
			return "", fmt.Errorf("%s takes one value, not a list", name)
		}
		items := make([]string, len(value.Content))
		for i, item := range value.Content {
			if item.Kind != yaml.ScalarNode {
				return "", fmt.Errorf("%s: the items of the list must be text", name)
			}
			items[i] = item.Value
		}
		return strings.Join(items, ","), nil
	}
	return "", fmt.Errorf("%s takes a value or a list of values, not a mapping", name)
}

func unknownKey(name string, fs *pflag.FlagSet) error {
	switch name {
	case "client-transport-security":
		return fmt.Errorf("keelson has no sections: write cert-file, key-file, trusted-ca-file and client-cert-auth at the top level instead of %s", name)
	case "peer-transport-security":
		return fmt.Errorf("keelson has no sections: write peer-cert-file, peer-key-file and peer-trusted-ca-file at the top level instead of %s", name)
	}
	if advice, ok := Advice(name); ok {
		return fmt.Errorf("keelson has no %s: %s", name, advice)
	}
	if near := Nearest(name, fs); near != "" {
		return fmt.Errorf("unknown key %q; did you mean %q?", name, near)
	}
	return fmt.Errorf("unknown key %q: keys are the flags of keelson --help without the dashes", name)
}
