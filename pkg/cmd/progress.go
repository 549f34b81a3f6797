package cmd

import (
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/mattn/go-isatty"
	"github.com/schollz/progressbar/v3"

	"github.com/keelson-io/keelson/pkg/snapshot"
)

// records are what is counted, unless it is bytes.
const records = " records"

// sayEvery is how often a progress that is no bar says something.
const sayEvery = 5 * time.Second

// progress tells how far long work is: with a bar on a terminal, elsewhere with
// a line every few seconds.
type progress struct {
	w     io.Writer
	verb  string
	total int64 // of what is counted; 0 is not known
	bytes bool  // bytes are counted, not records

	bar  *progressbar.ProgressBar // nil elsewhere than on a terminal
	said time.Time
}

// startProgress begins to tell of work that verb names, as in "restoring", on
// w, which is the command's stderr. total records are to come; 0 is not known.
func startProgress(w io.Writer, verb string, total int64) *progress {
	return newProgress(w, verb, total, false)
}

// startBytes is startProgress for work that is counted in bytes, and says itself
// how many these are (of), if anybody knows.
func startBytes(w io.Writer, verb string) *progress {
	return newProgress(w, verb, 0, true)
}

func newProgress(w io.Writer, verb string, total int64, bytes bool) *progress {
	p := &progress{w: w, verb: verb, total: total, bytes: bytes, said: time.Now()}
	if f, ok := w.(*os.File); ok && isatty.IsTerminal(f.Fd()) {
		length := total
		if length == 0 {
			length = -1 // a spinner
		}
		p.bar = progressbar.NewOptions64(length,
			progressbar.OptionSetWriter(w), progressbar.OptionSetDescription(verb), progressbar.OptionFullWidth(),
			progressbar.OptionShowCount(), progressbar.OptionShowBytes(bytes), progressbar.OptionUseIECUnits(true),
			progressbar.OptionThrottle(100*time.Millisecond), progressbar.OptionClearOnFinish(),
		)
	}
	return p
}

// report takes how far a Copy is.
func (p *progress) report(done snapshot.Progress) {
	if p.bytes {
		p.set(done.Bytes)
	} else {
		p.set(done.Records)
	}
}

// set takes how much of the total is done.
func (p *progress) set(n int64) {
	switch {
	case p.bar != nil:
		if p.total > 0 {
			n = min(n, p.total-1) // it ends with end, not when it seems full
		}
		_ = p.bar.Set64(n) // what cannot be shown is not worth a failure
	case time.Since(p.said) >= sayEvery:
		p.said = time.Now()
		text := p.amount(n)
		if p.total > 0 {
			text = fmt.Sprintf("%s of %s (%d %%)", strings.TrimSuffix(text, records), p.amount(p.total), 100*min(n, p.total)/p.total)
		}
		fmt.Fprintf(p.w, "keelson: %s: %s\n", p.verb, text)
	}
}

// of is set for work that says itself how much it is.
func (p *progress) of(n, total int64) {
	if p.total != total {
		p.total = total
		if p.bar != nil {
			p.bar.ChangeMax64(total)
		}
	}
	p.set(n)
}

func (p *progress) amount(n int64) string {
	if p.bytes {
		return formatBytes(n)
	}
	return fmt.Sprint(n, records)
}

// end ends it, however the work has ended, and leaves no trace of the bar.
func (p *progress) end() {
	if p.bar != nil {
		_ = p.bar.Finish()
		p.bar = nil
	}
}

// formatBytes writes a number of bytes for people.
func formatBytes(n int64) string {
	units := []string{"B", "KiB", "MiB", "GiB", "TiB"}
	value, unit := float64(n), 0
	for value >= 1024 && unit < len(units)-1 {
		value /= 1024
		unit++
	}
	if unit == 0 {
		return fmt.Sprintf("%d B", n)
	}
	return fmt.Sprintf("%.1f %s", value, units[unit])
}
