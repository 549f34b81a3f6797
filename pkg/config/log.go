package config

import (
	"io"
	"os"
	"strings"
	"time"

	"github.com/mattn/go-isatty"
	"github.com/sirupsen/logrus"
)

// Log says what the command logs, how and where.
type Log struct {
	Level   string
	Format  string
	Outputs []string
}

func defaultLog() Log {
	return Log{Level: "info", Format: "auto", Outputs: []string{"stderr"}}
}

func (l Log) validate() error {
	if _, err := logrus.ParseLevel(l.Level); err != nil {
		return Usagef("--log-level=%q: use debug, info, warn, error, panic or fatal", l.Level)
	}
	switch l.Format {
	case "auto", "json", "console", "text":
	default:
		return Usagef("--log-format=%q: use json, console or auto", l.Format)
	}
	for _, output := range l.Outputs {
		if strings.Contains(output, "://") || output == "" {
			return Usagef("--log-outputs=%q: use stderr, stdout or the path of a file", output)
		}
	}
	return nil
}

// Open returns the logger. Files are appended to, and stay open as long as
// the process lives.
func (l Log) Open() (*logrus.Logger, error) {
	var writers []io.Writer
	terminal := len(l.Outputs) > 0
	for _, output := range l.Outputs {
		switch output {
		case "stderr", "default":
			writers = append(writers, os.Stderr)
			terminal = terminal && isatty.IsTerminal(os.Stderr.Fd())
		case "stdout":
			writers = append(writers, os.Stdout)
			terminal = terminal && isatty.IsTerminal(os.Stdout.Fd())
		default:
			f, err := os.OpenFile(output, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
			if err != nil {
				return nil, Usagef("--log-outputs: %s", err)
			}
			writers = append(writers, f)
			terminal = false
		}
	}
	level, err := logrus.ParseLevel(l.Level)
	if err != nil {
		return nil, err
	}
	logger := logrus.New()
	logger.SetLevel(level)
	logger.SetOutput(io.MultiWriter(writers...))
	if len(writers) == 1 {
		logger.SetOutput(writers[0])
	}
	if l.Format == "json" || l.Format == "auto" && !terminal {
		// etcd's names of the fields, for the tools that read its logs.
		logger.SetFormatter(&logrus.JSONFormatter{
			TimestampFormat: "2006-01-02T15:04:05.000000Z0700",
			FieldMap:        logrus.FieldMap{logrus.FieldKeyTime: "ts"},
		})
	} else {
		logger.SetFormatter(&logrus.TextFormatter{
			FullTimestamp: true, TimestampFormat: time.RFC3339, DisableColors: !terminal,
		})
	}
	return logger, nil
}
