package raftlog

import (
	"context"
	"encoding/json"
	"fmt"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// clusterInfo is what a node says of its cluster to one that wants to join.
type clusterInfo struct {
	Cluster uint64   `json:"cluster"`
	Members []Member `json:"members"`
}

// AskCluster asks the node at address, as Peers.Set has it, for its cluster and
// the members: those that a majority knows if they are to be certain, or else as
// the node knows them, which needs no majority.
func AskCluster(ctx context.Context, address string, creds credentials.TransportCredentials, certain bool) (cluster uint64, members []Member, err error) {
	conn, err := dial([]string{address}, remembering(creds))
	if err != nil {
		return 0, nil, err
	}
	defer conn.Close()
	question, answer := new(wrapperspb.BytesValue), new(wrapperspb.BytesValue)
	if !certain {
		question.Value = []byte(asKnown)
	}
	if err := conn.Invoke(ctx, clusterMethod, question, answer); err != nil {
		return 0, nil, err
	}
	var info clusterInfo
	if err := json.Unmarshal(answer.Value, &info); err != nil {
		return 0, nil, fmt.Errorf("the answer of %s cannot be decoded: %w", address, err)
	}
	return info.Cluster, info.Members, nil
}

// asKnown asks for no certainty.
const asKnown = "as known"

// answerCluster is the other side of AskCluster. Nodes that are behind may not
// know the newest member.
func (ps *Peers) answerCluster(ctx context.Context, decode func(any) error) (any, error) {
	question := new(wrapperspb.BytesValue)
	if err := decode(question); err != nil {
		return nil, err
	}
	log := ps.log.Load()
	if string(question.Value) != asKnown {
		if _, err := log.Head(ctx); err != nil {
			return nil, status.Error(codes.Unavailable, err.Error())
		}
	}
	data, err := json.Marshal(clusterInfo{Cluster: ps.opt.Cluster, Members: log.Members().Members})
	if err != nil {
		return nil, status.Error(codes.Internal, err.Error())
	}
	return wrapperspb.Bytes(data), nil
}

// Publish makes the name and the client URLs of m, this node, known to the
// cluster.
func (ps *Peers) Publish(ctx context.Context, m Member) error {
	log := ps.log.Load()
	s := log.Status()
	if s.Leads {
		return log.publish(ctx, m)
	}
	conn := ps.Conn(s.Leader)
	if conn == nil {
		return ErrNotLeader
	}
	data, err := json.Marshal(m)
	if err != nil {
		return err
	}
	return conn.Invoke(ps.outgoing(ctx, s.Leader), publishMethod, wrapperspb.Bytes(data), new(wrapperspb.BytesValue))
}

// answerPublish is the other side of Publish.
func (ps *Peers) answerPublish(ctx context.Context, decode func(any) error) (any, error) {
	from, err := ps.check(ctx)
	if err != nil {
		return nil, status.Error(codes.PermissionDenied, err.Error())
	}
	request := new(wrapperspb.BytesValue)
	if err := decode(request); err != nil {
		return nil, err
	}
	var m Member
	if err := json.Unmarshal(request.Value, &m); err != nil || m.ID != from {
		return nil, status.Errorf(codes.InvalidArgument, "node %x sent what is not about itself: %v", from, err)
	}
	if err := ps.log.Load().publish(ctx, m); err != nil {
		return nil, status.Error(codes.Unavailable, err.Error())
	}
	return new(wrapperspb.BytesValue), nil
}
