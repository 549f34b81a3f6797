package server

import (
	"bytes"
	"errors"
	"io"
	"net/http"
	"os"
	"time"

	"golang.org/x/sync/semaphore"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

const (
	// bodyTimeout is how long the body of a JSON request may take to come. A
	// stream's body is as long as the stream.
	bodyTimeout = 30 * time.Second

	// maxBodyBytes is what the bodies of the JSON requests under way hold
	// together, but for the first bodyChunk of each.
	maxBodyBytes = 64 << 20
	bodyChunk    = 64 << 10

	// maxObjects is how many objects a request may be made of. Two bytes of
	// JSON can be one that takes more than a hundred in memory.
	maxObjects = 1 << 16
)

// streamPaths are the methods whose bodies are streams of values.
var streamPaths = map[string]bool{"/v3/watch": true, "/v3/lease/keepalive": true}

var (
	errBodyTimeout    = status.Errorf(codes.DeadlineExceeded, "keelson: the request has not come within %v", bodyTimeout)
	errBodyRoom       = status.Error(codes.ResourceExhausted, "keelson: too many large requests")
	errTooManyObjects = status.Errorf(codes.InvalidArgument, "keelson: the JSON value has more than %d objects", maxObjects)
)

// readBody reads the body of r, at most one byte more than limit, and puts
// what was read in its place. release is to be called when r is answered.
func readBody(w http.ResponseWriter, r *http.Request, limit int64, room *semaphore.Weighted) (release func(), err error) {
	// Where a deadline cannot be set there is no connection to wait for.
	control := http.NewResponseController(w)
	_ = control.SetReadDeadline(time.Now().Add(bodyTimeout))
	var (
		body bytes.Buffer
		held int64
		from = io.LimitReader(r.Body, limit+1)
	)
	release = func() { room.Release(held) }
	for err == nil {
		_, err = io.CopyN(&body, from, bodyChunk)
		if err == nil && !room.TryAcquire(bodyChunk) {
			err = errBodyRoom
			break
		} else if err == nil {
			held += bodyChunk
		}
	}
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded):
		return release, errBodyTimeout
	case !errors.Is(err, io.EOF):
		return release, err
	case bytes.Count(body.Bytes(), []byte{'{'}) > maxObjects:
		return release, errTooManyObjects
	}
	_ = control.SetReadDeadline(time.Time{})
	r.Body = io.NopCloser(&body)
	return release, nil
}
