package backup

import (
	"cmp"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Retention says which backups are kept. The zero value keeps all.
type Retention struct {
	Count int           // so many, if > 0
	Age   time.Duration // those that are not older, if > 0
}

const day = 24 * time.Hour

// ParseRetention reads a number of backups, such as 7, or an age such as 30d or
// 72h. 0 keeps all.
func ParseRetention(text string) (Retention, error) {
	if n, err := strconv.Atoi(text); err == nil {
		if n < 0 {
			return Retention{}, fmt.Errorf("%w: %s is negative: 0 keeps all", ErrUsage, text)
		}
		return Retention{Count: n}, nil
	}
	if days, ok := strings.CutSuffix(text, "d"); ok {
		if n, err := strconv.Atoi(days); err == nil && n > 0 && n < 100_000 {
			return Retention{Age: time.Duration(n) * day}, nil
		}
	} else if age, err := time.ParseDuration(text); err == nil && age > 0 {
		return Retention{Age: age}, nil
	}
	return Retention{}, fmt.Errorf("%w: %q: write a number of backups, such as 7, or an age, such as 30d or 72h", ErrUsage, text)
}

// leastKept is how many backups stay whatever their age: to a clock that runs
// ahead all of them are old.
const leastKept = 3

// expired returns which of found, in order, are not to be kept now that newest is
// there, which always is. Those that are ahead of it are of another past, or show
// that data was lost: what they have is nowhere else, so they are never removed,
// nor do they count.
func (r Retention) expired(found []backupName, newest backupName, now time.Time) (old, ahead []backupName) {
	var others []backupName
	for _, n := range found {
		switch {
		case n.revision > newest.revision:
			ahead = append(ahead, n)
		case n != newest:
			others = append(others, n)
		}
	}
	switch {
	case r.Count > 0:
		old = others[:max(0, len(others)-(r.Count-1))]
	case r.Age > 0:
		// Each was made before those after it, whatever the clock said.
		made := newest.at
		n := 0
		for i := len(others) - 1; i >= 0; i-- {
			if others[i].at.Before(made) {
				made = others[i].at
			}
			if now.Sub(made) > r.Age {
				n = i + 1
				break
			}
		}
		old = others[:min(n, max(0, len(others)-(leastKept-1)))]
	}
	return old, ahead
}

// backupName is what a backup is called.
type backupName struct {
	id       string
	revision int64
	at       time.Time // UTC, whole seconds
}

const (
	namePrefix = "keelson-"
	nameTime   = "20060102T150405Z"
)

var nameForm = regexp.MustCompile(`^keelson-([0-9a-f]{16})-([0-9]{1,19})-([0-9]{8}T[0-9]{6}Z)\.db$`)

func (n backupName) String() string {
	return fmt.Sprintf("%s%s-%d-%s.db", namePrefix, n.id, n.revision, n.at.Format(nameTime))
}

// parseNames returns those of names that are backups of id, the oldest first:
// by their revisions, since clocks are set.
func parseNames(names []string, id string) []backupName {
	var found []backupName
	for _, name := range names {
		parts := nameForm.FindStringSubmatch(name)
		if parts == nil {
			continue
		}
		revision, err := strconv.ParseInt(parts[2], 10, 64)
		if err != nil {
			continue
		}
		at, err := time.Parse(nameTime, parts[3])
		if n := (backupName{id, revision, at}); err == nil && n.String() == name { // not another's id, nor a leading 0
			found = append(found, n)
		}
	}
	slices.SortFunc(found, func(a, b backupName) int {
		return cmp.Or(cmp.Compare(a.revision, b.revision), a.at.Compare(b.at))
	})
	return found
}
