package report

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// Machine is where a run took place.
type Machine struct {
	CPU      string  `json:"cpu"`
	Cores    int     `json:"cores"`
	MemoryMB int     `json:"memory_mb"`
	Kernel   string  `json:"kernel"`
	FS       string  `json:"file_system"`
	Go       string  `json:"go"`
	SyncP50  float64 `json:"sync_p50_us"` // of a write of 4 KiB and fdatasync
	SyncP99  float64 `json:"sync_p99_us"`
	Load     string  `json:"load"` // the load average when the run started
	// Idle is the share of the cores' time that nobody used just before the run.
	Idle float64 `json:"idle,omitempty"`
}

// ThisMachine describes the machine and tries the disk that dir is on.
func ThisMachine(dir string) (Machine, error) {
	m := Machine{Cores: runtime.NumCPU(), Go: runtime.Version()}
	m.CPU = lineValue("/proc/cpuinfo", "model name")
	if kb, err := strconv.Atoi(strings.TrimSuffix(lineValue("/proc/meminfo", "MemTotal"), " kB")); err == nil {
		m.MemoryMB = kb / 1024
	}
	m.Kernel = firstLine("/proc/sys/kernel/osrelease")
	m.Load = firstLine("/proc/loadavg")
	m.Idle = idle(2 * time.Second)
	m.FS = fileSystem(dir)
	samples, err := trySync(dir)
	if err != nil {
		return m, err
	}
	m.SyncP50 = microseconds(Percentile(samples, 50))
	m.SyncP99 = microseconds(Percentile(samples, 99))
	return m, nil
}

// busy says whether others used a good part of the machine when the run started.
func (m Machine) busy() bool {
	if m.Idle > 0 {
		return m.Idle < 0.8
	}
	average, _, _ := strings.Cut(m.Load, " ")
	load, err := strconv.ParseFloat(average, 64)
	return err == nil && load > float64(m.Cores)/2
}

// quiet says what is known of others' use of the machine.
func (m Machine) quiet() string {
	if m.Idle > 0 {
		return fmt.Sprintf("%.0f%% idle at the start", 100*m.Idle)
	}
	return "load average at the start " + m.Load
}

// idle watches the machine for d; 0: it cannot be told.
func idle(d time.Duration) float64 {
	beforeIdle, before := cpuTimes(firstLine("/proc/stat"))
	time.Sleep(d)
	afterIdle, after := cpuTimes(firstLine("/proc/stat"))
	if after <= before {
		return 0
	}
	return float64(afterIdle-beforeIdle) / float64(after-before)
}

// cpuTimes reads the first line of /proc/stat: "cpu" and times, of which the
// fourth and fifth are idle and waiting for a disk.
func cpuTimes(line string) (idle, all int64) {
	for i, field := range strings.Fields(line) {
		n, err := strconv.ParseInt(field, 10, 64)
		if err != nil {
			continue // its name
		}
		if all += n; i == 4 || i == 5 {
			idle += n
		}
	}
	return idle, all
}

func firstLine(path string) string {
	b, _ := os.ReadFile(path) // what cannot be read is left empty
	line, _, _ := strings.Cut(string(b), "\n")
	return line
}

func lineValue(path, name string) string {
	b, _ := os.ReadFile(path) // what cannot be read is left empty
	for line := range strings.Lines(string(b)) {
		if key, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(key) == name {
			return strings.TrimSpace(value)
		}
	}
	return ""
}

// fileSystem returns the type of the mount with the longest prefix of dir.
func fileSystem(dir string) string {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return ""
	}
	b, _ := os.ReadFile("/proc/self/mounts")
	var point, kind string
	for line := range strings.Lines(string(b)) {
		f := strings.Fields(line)
		if len(f) < 3 || len(f[1]) < len(point) {
			continue
		}
		if f[1] == "/" || dir == f[1] || strings.HasPrefix(dir, f[1]+"/") {
			point, kind = f[1], f[2]
		}
	}
	return kind
}

func trySync(dir string) ([]time.Duration, error) {
	f, err := os.CreateTemp(dir, "sync")
	if err != nil {
		return nil, err
	}
	defer func() { _ = os.Remove(f.Name()) }()
	defer func() { _ = f.Close() }()
	block := make([]byte, 4096)
	var samples []time.Duration
	for i := range 500 {
		began := time.Now()
		if _, err := f.WriteAt(block, int64(i)*4096); err != nil {
			return nil, err
		}
		if err := syscall.Fdatasync(int(f.Fd())); err != nil {
			return nil, err
		}
		samples = append(samples, time.Since(began))
	}
	slices.Sort(samples)
	return samples, nil
}
