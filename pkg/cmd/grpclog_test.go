package cmd

import (
	"testing"

	"github.com/sirupsen/logrus"
	"github.com/sirupsen/logrus/hooks/test"
	"google.golang.org/grpc/grpclog"
)

func TestGRPCLog(t *testing.T) {
	logger, hook := test.NewNullLogger()
	catchGRPCLog(logrus.NewEntry(logger))
	grpclog.Info("connected")
	grpclog.Errorf("Failed to decode request: %v", "unexpected EOF")
	entries := hook.AllEntries()
	if len(entries) != 1 || entries[0].Level != logrus.WarnLevel || entries[0].Message != "grpc: Failed to decode request: unexpected EOF" {
		t.Errorf("logged: %v", entries)
	}
}
