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

// expired returns which of found, the oldest first, are not to be kept. The one
// called newest always is: a clock that was set back does not make it old.
func (r Retention) expired(found []backupName, newest string, now time.Time) []backupName {
	others := slices.DeleteFunc(slices.Clone(found), func(n backupName) bool { return n.String() == newest })
	switch {
	case r.Count > 0:
		return others[:max(0, len(others)-(r.Count-1))]
	case r.Age > 0:
		return slices.DeleteFunc(others, func(n backupName) bool { return now.Sub(n.at) <= r.Age })
	}
	return nil
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

// parseNames returns those of names that are backups of id, the oldest first.
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
		return cmp.Or(a.at.Compare(b.at), cmp.Compare(a.revision, b.revision))
	})
	return found
}
