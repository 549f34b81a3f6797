package raftlog

import (
	"context"
	"sync/atomic"
	"time"

	"google.golang.org/grpc/connectivity"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// pingInterval is how often the way to another node is measured, as in etcd.
const pingInterval = 3 * time.Second

// traffic counts what goes from and to one other node: messages of raft and
// snapshots, before compression and framing.
type traffic struct{ sent, received, failures atomic.Int64 }

// Traffic is what has gone between this node and another one since it is known.
type Traffic struct {
	Sent, Received int64 // bytes
	Failures       int64 // how often something could not be sent
}

// Traffic returns what has gone between this node and each other one.
func (ps *Peers) Traffic() map[uint64]Traffic {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	all := make(map[uint64]Traffic, len(ps.traffic))
	for id, t := range ps.traffic {
		all[id] = Traffic{Sent: t.sent.Load(), Received: t.received.Load(), Failures: t.failures.Load()}
	}
	return all
}

// trafficOf returns the counters of node id.
func (ps *Peers) trafficOf(id uint64) *traffic {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	return ps.trafficWith(id)
}

// trafficWith is trafficOf for a caller that holds ps.mu.
func (ps *Peers) trafficWith(id uint64) *traffic {
	t := ps.traffic[id]
	if t == nil {
		t = &traffic{}
		ps.traffic[id] = t
	}
	return t
}

// failed counts what was not sent to node id, if it is one.
func (ps *Peers) failed(id uint64) {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	if t := ps.traffic[id]; t != nil {
		t.failures.Add(1)
	}
}

// ping measures the way to p again and again, until p closes.
func (ps *Peers) ping(p *peer) {
	for {
		pause := pingInterval / 10
		if p.conn.GetState() == connectivity.Ready { // else it would be made meanwhile
			pause = pingInterval
			ctx, cancel := context.WithTimeout(p.ctx, sendTimeout)
			start := time.Now()
			err := p.conn.Invoke(ctx, pingMethod, new(wrapperspb.BytesValue), new(wrapperspb.BytesValue))
			cancel()
			if err == nil {
				ps.opt.OnRoundTrip(p.id, time.Since(start))
			}
		}
		select {
		case <-time.After(pause):
		case <-p.ctx.Done():
			return
		}
	}
}

// answerPing is the other side of ping.
func (ps *Peers) answerPing(_ context.Context, decode func(any) error) (any, error) {
	request := new(wrapperspb.BytesValue)
	return request, decode(request)
}
