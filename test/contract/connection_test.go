package contract

import (
	"net"
	"sync"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"golang.org/x/net/http2"
)

// frames opens a connection for HTTP/2's frames.
func (e *env) frames() *http2.Framer {
	e.Helper()
	conn, err := net.Dial("unix", e.srv.Socket)
	must(e, err)
	e.Cleanup(func() { _ = conn.Close() })
	must(e, conn.SetDeadline(time.Now().Add(time.Minute)))
	_, err = conn.Write([]byte(http2.ClientPreface))
	must(e, err)
	framer := http2.NewFramer(conn, conn)
	must(e, framer.WriteSettings())
	return framer
}

// connectionSettings checks that the number of streams has no limit.
func connectionSettings(e *env) {
	framer := e.frames()
	for {
		frame, err := framer.ReadFrame()
		must(e, err)
		settings, ok := frame.(*http2.SettingsFrame)
		if !ok || settings.IsAck() {
			continue
		}
		if limit, ok := settings.Value(http2.SettingMaxConcurrentStreams); ok && limit != 1<<32-1 {
			e.Errorf("%d streams are allowed", limit)
		}
		break
	}
	// More than any default allows, on the one connection of e.
	var streams sync.WaitGroup
	for range 1500 {
		w := e.watch()
		streams.Go(func() {
			err := w.stream.Send(&pb.WatchRequest{RequestUnion: &pb.WatchRequest_CreateRequest{CreateRequest: all()}})
			if err == nil {
				_, err = w.stream.Recv()
			}
			if err != nil {
				e.Errorf("one of many streams: %v", err)
			}
		})
	}
	streams.Wait()
}

// pingsWithStream pings more often than every 5 seconds, which a client may
// not even with a stream, but for twice.
func pingsWithStream(e *env) {
	framer := e.frames()
	// Headers of a call: POST, http, /etcdserverpb.Watch/Watch, content-type.
	headers := []byte{0x83, 0x86}
	literal := func(name, value string) {
		headers = append(headers, 0, byte(len(name)))
		headers = append(headers, name...)
		headers = append(headers, byte(len(value)))
		headers = append(headers, value...)
	}
	literal(":path", "/etcdserverpb.Watch/Watch")
	literal(":authority", "localhost")
	literal("content-type", "application/grpc")
	literal("te", "trailers")
	must(e, framer.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: headers, EndHeaders: true}))
	acks := 0
	for i := range 10 {
		if err := framer.WritePing(false, [8]byte{byte(i)}); err != nil {
			break
		}
	}
	for {
		frame, err := framer.ReadFrame()
		must(e, err)
		switch f := frame.(type) {
		case *http2.PingFrame:
			acks++
		case *http2.RSTStreamFrame:
			e.Fatalf("the call was refused: %v", f)
		case *http2.GoAwayFrame:
			equal(e, "reason", string(f.DebugData()), "too_many_pings")
			if acks < 2 {
				e.Errorf("the connection ended after %d pings", acks)
			}
			return
		}
	}
}

// serverPings waits for a ping of the server on an idle connection, and lets
// it go unanswered.
func serverPings(e *env) {
	framer := e.frames()
	pinged := false
	for {
		frame, err := framer.ReadFrame()
		if err != nil {
			equal(e, "pinged before the connection was closed", pinged, true)
			return
		}
		if ping, ok := frame.(*http2.PingFrame); ok && !ping.IsAck() {
			pinged = true
		}
	}
}
