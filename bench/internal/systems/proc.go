package systems

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// userHZ is the unit of times in /proc/PID/stat: 1/100 s on every Linux
// architecture that Go runs on.
const userHZ = 100

// processClock makes the clock of a process's CPU time of its id
// (clock_getcpuclockid(3)); it counts nanoseconds where /proc has 1/100 s.
func processClock(pid int) int32 { return int32(^pid<<3 | 2) }

// Usage is what a process has used since it started.
type Usage struct {
	CPU     time.Duration // user and system time of all threads
	Written int64         // bytes that it caused to be sent to the disk
	RSS     int64         // bytes in memory now
	PeakRSS int64         // highest RSS since the start or ResetPeak
	Largest int64         // of several processes', the largest PeakRSS
}

// ReadUsage reads the process's CPU clock and /proc/PID.
func ReadUsage(pid int) (Usage, error) { return readUsage(pid, false) }

// readUsage counts, if told so, the time of children that have ended; in what
// was written the kernel counts them always.
func readUsage(pid int, children bool) (Usage, error) {
	var u Usage
	proc := filepath.Join("/proc", strconv.Itoa(pid))
	stat, err := os.ReadFile(filepath.Join(proc, "stat"))
	if err != nil {
		return u, err
	}
	var spent unix.Timespec
	if err := unix.ClockGettime(processClock(pid), &spent); err != nil {
		return u, os.NewSyscallError("clock_gettime", noProcess(err))
	}
	u.CPU = time.Duration(spent.Nano())
	if children {
		ended, err := childrenTime(stat)
		if err != nil {
			return u, err
		}
		u.CPU += ended
	}
	io, err := fields(filepath.Join(proc, "io"))
	if err != nil {
		return u, err
	}
	status, err := fields(filepath.Join(proc, "status"))
	if err != nil {
		return u, err
	}
	u.Written = io["write_bytes"]
	u.RSS = status["VmRSS"] << 10
	u.PeakRSS = status["VmHWM"] << 10
	return u, nil
}

// ResetPeak lets PeakRSS start again from what is in memory now.
func ResetPeak(pid int) error {
	return os.WriteFile(filepath.Join("/proc", strconv.Itoa(pid), "clear_refs"), []byte("5"), 0o200)
}

// noProcess says that of a process that is gone its clock is invalid.
func noProcess(err error) error {
	if errors.Is(err, unix.EINVAL) {
		return unix.ESRCH
	}
	return err
}

// childrenTime adds cutime and cstime, the 16th and 17th field: the CPU time of
// children that have ended. The second field is the program's name in
// parentheses and may hold anything.
func childrenTime(stat []byte) (time.Duration, error) {
	at := bytes.LastIndexByte(stat, ')')
	if at < 0 {
		return 0, errors.New("/proc/PID/stat has no name")
	}
	fields := strings.Fields(string(stat[at+1:]))
	if len(fields) < 15 {
		return 0, fmt.Errorf("/proc/PID/stat has %d fields after the name", len(fields))
	}
	var ticks int64
	for _, field := range fields[13:15] {
		n, err := strconv.ParseInt(field, 10, 64)
		if err != nil {
			return 0, err
		}
		ticks += n
	}
	return time.Duration(ticks) * (time.Second / userHZ), nil
}

// fields reads lines like "VmRSS:     1234 kB".
func fields(path string) (map[string]int64, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	values := map[string]int64{}
	scanner := bufio.NewScanner(bytes.NewReader(b))
	for scanner.Scan() {
		name, rest, ok := strings.Cut(scanner.Text(), ":")
		words := strings.Fields(rest)
		if !ok || len(words) == 0 {
			continue
		}
		if n, err := strconv.ParseInt(words[0], 10, 64); err == nil {
			values[name] = n
		}
	}
	return values, scanner.Err()
}
