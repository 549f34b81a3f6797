package server

import (
	"errors"
	"fmt"
	"strconv"

	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"
)

// Requests that a node passes on travel many at a time, and so do the leader's
// answers: a message is any number of frames,
//
//	number of the request │ kind │ milliseconds │ length │ body
//
// of which all but the body are varints.
type frames []byte

type frame struct {
	number uint64 // of the request, for the node that passes it on
	kind   frameKind
	millis uint64 // that the client will wait for; 0: as long as requests do
	body   []byte
}

type frameKind uint64

const (
	cancelFrame frameKind = iota // nobody waits for the request any more
	putFrame
	deleteFrame
	txnFrame
	requestKinds

	responseFrame // the body is the method's response
	statusFrame   // the body is a google.rpc.Status
)

const (
	// messageBytes is the size from which a message takes no further frame.
	messageBytes = 64 << 10

	// frameOverhead is about what a request takes in memory beside its body.
	frameOverhead = 1 << 10
)

var errFrames = errors.New("a message of forwarded requests is damaged")

// appendFrame appends what is before the body, of length bytes.
func appendFrame(buf []byte, number uint64, kind frameKind, millis uint64, length int) []byte {
	buf = protowire.AppendVarint(buf, number)
	buf = protowire.AppendVarint(buf, uint64(kind))
	buf = protowire.AppendVarint(buf, millis)
	return protowire.AppendVarint(buf, uint64(length))
}

// sizeFrame is the size of a frame at most.
func sizeFrame(length int) int { return 4*10 + length }

// TakeBuffers implements bufferTaker.
func (m *frames) TakeBuffers(data mem.BufferSlice) error {
	*m = data.Materialize()
	return nil
}

// next takes the first frame off m.
func (m *frames) next() (f frame, err error) {
	var head [4]uint64
	rest := []byte(*m)
	for i := range head {
		v, n := protowire.ConsumeVarint(rest)
		if n < 0 {
			return frame{}, fmt.Errorf("%w: %w", errFrames, protowire.ParseError(n))
		}
		head[i], rest = v, rest[n:]
	}
	length := head[3]
	if length > uint64(len(rest)) {
		return frame{}, fmt.Errorf("%w: a body of %d bytes in %d", errFrames, length, len(rest))
	}
	*m = frames(rest[length:])
	return frame{number: head[0], kind: frameKind(head[1]), millis: head[2], body: rest[:length:length]}, nil
}

// forwardedTo is what a node says with the requests that it passes on: which
// node of which cluster they are for.
func forwardedTo(cluster, member uint64) string {
	return strconv.FormatUint(cluster, 16) + "/" + strconv.FormatUint(member, 16)
}
