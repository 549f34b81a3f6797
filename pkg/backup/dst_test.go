package backup

import (
	"testing"
	"time"
)

// TestSummerTime: on the day on which the hour is not there the backup is made in
// the next, and on the one on which it is there twice there are two.
func TestSummerTime(t *testing.T) {
	s, err := ParseSchedule("CRON_TZ=Europe/Berlin 30 2 * * *")
	if err != nil {
		t.Fatal(err)
	}
	for start, want := range map[string][]string{
		"2027-03-27T12:00:00Z": {"2027-03-28T01:30:00Z", "2027-03-29T00:30:00Z"},
		"2027-10-30T12:00:00Z": {"2027-10-31T00:30:00Z", "2027-10-31T01:30:00Z", "2027-11-01T01:30:00Z"},
	} {
		at, err := time.Parse(time.RFC3339, start)
		if err != nil {
			t.Fatal(err)
		}
		for _, w := range want {
			at = s.Next(at).UTC()
			if got := at.Format(time.RFC3339); got != w {
				t.Errorf("after %s: %s, want %s", start, got, w)
			}
		}
	}
}
