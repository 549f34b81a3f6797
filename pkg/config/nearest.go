package config

import (
	"strings"

	"github.com/spf13/pflag"
)

// Nearest returns the flag that name was most likely meant to be, or "": the
// one with the fewest different letters, or else one that goes on where the
// other ends, as in data-directory.
func Nearest(name string, fs *pflag.FlagSet) string {
	best, bestDistance := "", max(2, len(name)/4)+1
	fs.VisitAll(func(f *pflag.Flag) {
		if d := distance(name, f.Name); d < bestDistance {
			best, bestDistance = f.Name, d
		}
	})
	if best != "" || len(name) < 4 {
		return best
	}
	fs.VisitAll(func(f *pflag.Flag) {
		if len(f.Name) > max(4, len(best)) && (strings.HasPrefix(name, f.Name) || strings.HasPrefix(f.Name, name)) {
			best = f.Name
		}
	})
	return best
}

// distance is how many insertions, deletions and replacements make a of b.
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			replace := diagonal
			if a[i] != b[j] {
				replace++
			}
			diagonal = row[j+1]
			row[j+1] = min(replace, diagonal+1, row[j]+1)
		}
	}
	return row[len(b)]
}
