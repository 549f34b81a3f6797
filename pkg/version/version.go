// Package version says which keelson this is.
package version

import (
	"fmt"
	"runtime"
	"runtime/debug"
)

// Etcd is the version of etcd whose API keelson serves; clients see it in
// Status and /version and choose features by it.
const Etcd = "3.7.3"

// Set by the linker (see the Makefile); empty in a plain "go build".
var (
	version string
	commit  string
)

const module = "github.com/keelson-io/keelson"

// Version is keelson's own version, such as "v0.1.0", or "devel".
func Version() string {
	if version != "" {
		return version
	}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "devel"
	}
	if info.Main.Path == module && info.Main.Version != "" && info.Main.Version != "(devel)" {
		return info.Main.Version
	}
	for _, dep := range info.Deps { // built into another program
		if dep.Path == module {
			return dep.Version
		}
	}
	return "devel"
}

// Commit is the source revision it was built from, or "unknown".
func Commit() string {
	if commit != "" {
		return commit
	}
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, s := range info.Settings {
			if s.Key == "vcs.revision" {
				return s.Value
			}
		}
	}
	return "unknown"
}

// Text is what "keelson version" prints.
func Text() string {
	return fmt.Sprintf("keelson %s\ncommit: %s\netcd API: %s\ngo: %s\nplatform: %s/%s\n",
		Version(), Commit(), Etcd, runtime.Version(), runtime.GOOS, runtime.GOARCH)
}
