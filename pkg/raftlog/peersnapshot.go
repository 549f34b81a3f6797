package raftlog

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

const (
	// snapshotPiece is how many bytes of a snapshot are in one message, which has
	// room in the largest of gRPC's buffers that are used again.
	snapshotPiece = 1<<20 - 64

	// installPatience is how long a node that has a snapshot whole may take to
	// make it durable.
	installPatience = 10 * time.Minute
)

// snapshotPatience is how long a snapshot may stand still before its sender gives
// it up: raft sends no entries to a node that is to take one.
const snapshotPatience = time.Minute

var errStalled = errors.New("the node takes no more of it")

// sendSnapshot sends the log to p and tells raft how that ended.
func (ps *Peers) sendSnapshot(p *peer) {
	log := ps.log.Load()
	if log == nil {
		return
	}
	logger := ps.opt.Logger.WithField("node", formatID(p.id))
	logger.Info("sending a snapshot")
	start := time.Now()
	err := p.writeSnapshot(log, ps.patience)
	log.ReportSnapshot(p.id, err == nil)
	if err != nil {
		logger.WithError(err).Warn("a snapshot was not sent; raft will ask for it again")
		return
	}
	logger.WithField("took", time.Since(start).Round(time.Millisecond).String()).Info("sent a snapshot")
}

func (p *peer) writeSnapshot(log *Log, patience time.Duration) (err error) {
	ctx, cancel := context.WithCancelCause(p.ctx)
	defer cancel(nil)
	stalled := time.AfterFunc(patience, func() { cancel(errStalled) })
	defer stalled.Stop()
	defer func() {
		if err != nil && errors.Is(context.Cause(ctx), errStalled) {
			err = errStalled
		}
	}()
	s, err := p.conn.NewStream(ctx, stream, snapshotMethod)
	if err != nil {
		return err
	}
	pieces := bufio.NewWriterSize(pieceWriter{s, func(bytes int) {
		p.traffic.sent.Add(int64(bytes))
		stalled.Reset(patience)
	}}, snapshotPiece)
	err = log.WriteSnapshot(ctx, pieces)
	if err == nil {
		err = pieces.Flush()
	}
	if err == nil {
		err = s.CloseSend()
	}
	if err == nil || errors.Is(err, io.EOF) { // EOF: the other side says why
		stalled.Reset(installPatience)
		err = s.RecvMsg(new(wrapperspb.BytesValue))
	}
	return err
}

// pieceWriter sends what is written as messages.
type pieceWriter struct {
	grpc.ClientStream
	sent func(bytes int)
}

func (w pieceWriter) Write(p []byte) (int, error) {
	for rest := p; len(rest) > 0; {
		piece := rest[:min(len(rest), snapshotPiece)]
		if err := w.SendMsg(wrapperspb.Bytes(piece)); err != nil {
			return 0, err
		}
		w.sent(len(piece))
		rest = rest[len(piece):]
	}
	return len(p), nil
}

// piece is a message that is received. Where the codec knows TakeBuffers, its
// content is not copied.
type piece struct {
	*wrapperspb.BytesValue
	rest *mem.Reader // nil if BytesValue has it
}

// TakeBuffers decodes the message: nothing, or a field of bytes with number 1.
func (p *piece) TakeBuffers(data mem.BufferSlice) error {
	p.rest = data.Reader() // keeps what it has to read
	if p.rest.Remaining() == 0 {
		return nil
	}
	tag, err := p.rest.ReadByte()
	if err != nil {
		return err
	}
	n, err := binary.ReadUvarint(p.rest)
	if err == nil && (tag != 1<<3|2 || n != uint64(p.rest.Remaining())) {
		err = fmt.Errorf("a message of a snapshot begins with %#x and %d", tag, n)
	}
	return err
}

// pieceReader reads what a pieceWriter sends.
type pieceReader struct {
	grpc.ServerStream
	rest     io.Reader
	received *atomic.Int64 // bytes
}

func (r *pieceReader) Read(p []byte) (int, error) {
	for {
		if r.rest != nil {
			n, err := r.rest.Read(p)
			if !errors.Is(err, io.EOF) {
				return n, err
			}
			r.rest = nil
		}
		m := &piece{BytesValue: new(wrapperspb.BytesValue)}
		if err := r.RecvMsg(m); err != nil {
			return 0, err
		}
		if m.rest != nil {
			r.received.Add(int64(m.rest.Remaining()))
			r.rest = m.rest
		} else {
			r.received.Add(int64(len(m.Value)))
			r.rest = bytes.NewReader(m.Value)
		}
	}
}

// receiveSnapshot takes a snapshot.
func (ps *Peers) receiveSnapshot(s grpc.ServerStream) error {
	from, err := ps.check(s.Context())
	if err != nil {
		return status.Error(codes.PermissionDenied, err.Error())
	}
	ps.opt.Logger.WithField("node", formatID(from)).Info("receiving a snapshot")
	if err := ps.log.Load().ReadSnapshot(s.Context(), &pieceReader{ServerStream: s, received: &ps.trafficOf(from).received}); err != nil {
		ps.opt.Logger.WithError(err).Warn("a snapshot was not received")
		return status.Error(codes.Aborted, err.Error())
	}
	return s.SendMsg(new(wrapperspb.BytesValue))
}
