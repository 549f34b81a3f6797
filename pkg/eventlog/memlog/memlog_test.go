package memlog_test

import (
	"sync"
	"testing"

	"github.com/keelson-io/keelson/pkg/eventlog"
	"github.com/keelson-io/keelson/pkg/eventlog/logtest"
	"github.com/keelson-io/keelson/pkg/eventlog/memlog"
)

// TestLog runs the suite of all drivers; a Disk stands for a directory.
func TestLog(t *testing.T) {
	var disks sync.Map // directory → *memlog.Disk
	logtest.Run(t, logtest.Harness{
		Shared: true,
		Open: func(_ testing.TB, dir string) eventlog.Log {
			disk, _ := disks.LoadOrStore(dir, &memlog.Disk{})
			return disk.(*memlog.Disk).Open(nil)
		},
		FailAppend: func(_ testing.TB, log eventlog.Log, persisted bool) {
			fault := memlog.FailUnpersisted
			if persisted {
				fault = memlog.FailPersisted
			}
			log.(*memlog.Log).InjectFault(fault)
		},
	})
}
