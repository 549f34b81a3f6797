package backup

import (
	"fmt"
	"strings"
	"time"

	"github.com/netresearch/go-cron"
)

// Schedule says when backups are due.
type Schedule struct {
	text string
	cron cron.Schedule
}

// ParseSchedule reads the five fields of cron (minute, hour, day of the month,
// month, day of the week), or @hourly, @daily and so on, or @every with a
// duration of at least a second. They are in the local time zone unless
// CRON_TZ=Europe/Berlin, say, is before them.
func ParseSchedule(text string) (Schedule, error) {
	schedule, err := cron.ParseStandard(strings.TrimSpace(text))
	if err != nil {
		return Schedule{}, fmt.Errorf("%w: %q: %w: write five fields as for cron, such as \"30 3 * * *\", or @daily, or @every 6h", ErrUsage, text, err)
	}
	if schedule.Next(time.Now()).IsZero() {
		return Schedule{}, fmt.Errorf("%w: %q: there is no such time", ErrUsage, text)
	}
	return Schedule{text: text, cron: schedule}, nil
}

// String returns the schedule as it was written.
func (s Schedule) String() string { return s.text }

// Next returns the first time after t.
func (s Schedule) Next(t time.Time) time.Time { return s.cron.Next(t) }
