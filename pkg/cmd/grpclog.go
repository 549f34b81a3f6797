package cmd

import (
	"bytes"
	"io"

	"github.com/sirupsen/logrus"
	"google.golang.org/grpc/grpclog"
)

// catchGRPCLog puts the errors that gRPC and the JSON gateway log by
// themselves, often for what a client has sent, into log. gRPC's logger is
// one for the process, so that this is the command's to do.
func catchGRPCLog(log *logrus.Entry) {
	grpclog.SetLoggerV2(grpclog.NewLoggerV2(io.Discard, io.Discard, grpcErrors{log}))
}

// grpcErrors takes lines such as "2006/01/02 15:04:05 ERROR: text".
type grpcErrors struct{ log *logrus.Entry }

func (g grpcErrors) Write(line []byte) (int, error) {
	text := line
	if _, after, ok := bytes.Cut(line, []byte("ERROR: ")); ok {
		text = after
	}
	g.log.Warn("grpc: " + string(bytes.TrimSpace(text)))
	return len(line), nil
}
