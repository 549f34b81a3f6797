package cluster

import (
	"os"
	"testing"

	"github.com/keelson-io/keelson/test/internal/faultdisk"
)

func TestMain(m *testing.M) {
	faultdisk.Main()
	os.Exit(m.Run())
}
