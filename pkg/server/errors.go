package server

import (
	"context"
	"errors"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/keelson-io/keelson/pkg/eventlog"
	"github.com/keelson-io/keelson/pkg/lease"
	"github.com/keelson-io/keelson/pkg/raftlog"
	"github.com/keelson-io/keelson/pkg/store"
	"github.com/keelson-io/keelson/pkg/watch"
)

// statuses maps the sentinels below this package to etcd's statuses; the
// first that errors.Is finds counts. Clients compare the texts, so each is
// etcd's own.
//
// A write whose fate is not known must be told apart from one that did not
// happen: "request timed out" is what etcd's clients take as unknown, "no
// leader" what they take as not done.
var statuses = []struct {
	sentinel error
	status   error
}{
	{store.ErrUnknownOutcome, rpctypes.ErrGRPCTimeout},
	{store.ErrTimeout, rpctypes.ErrGRPCTimeout},
	{store.ErrCompacted, rpctypes.ErrGRPCCompacted},
	{store.ErrFutureRev, rpctypes.ErrGRPCFutureRev},
	{store.ErrTooManyKeys, errTooManyKeys},
	{store.ErrKeyNotFound, rpctypes.ErrGRPCKeyNotFound},
	{store.ErrLeaseNotFound, rpctypes.ErrGRPCLeaseNotFound},
	{store.ErrLeaseExists, rpctypes.ErrGRPCLeaseExist},
	{store.ErrNoSpace, rpctypes.ErrGRPCNoSpace},
	{store.ErrCorruptAlarm, rpctypes.ErrGRPCCorrupt},
	{store.ErrUnavailable, rpctypes.ErrGRPCNoLeader},
	{raftlog.ErrMemberExists, rpctypes.ErrGRPCMemberExist},
	{raftlog.ErrMemberNotFound, rpctypes.ErrGRPCMemberNotFound},
	{raftlog.ErrMemberRemoved, rpctypes.ErrGRPCMemberNotFound},
	{raftlog.ErrPeerURLExists, rpctypes.ErrGRPCPeerURLExist},
	{raftlog.ErrBadURLs, rpctypes.ErrGRPCMemberBadURLs},
	{raftlog.ErrNotLearner, rpctypes.ErrGRPCMemberNotLearner},
	{raftlog.ErrTooManyLearners, rpctypes.ErrGRPCTooManyLearners},
	{raftlog.ErrLearnerNotReady, rpctypes.ErrGRPCLearnerNotReady},
	{raftlog.ErrNotStarted, rpctypes.ErrGRPCMemberNotEnoughStarted},
	{raftlog.ErrUnhealthy, rpctypes.ErrGRPCUnhealthy},
	{raftlog.ErrNotLeader, rpctypes.ErrGRPCNoLeader},
	{store.ErrStopped, rpctypes.ErrGRPCStopped},
	{lease.ErrNotFound, rpctypes.ErrGRPCLeaseNotFound},
	{lease.ErrNotPrimary, rpctypes.ErrGRPCNoLeader},
	{watch.ErrStopped, rpctypes.ErrGRPCStopped},
	{eventlog.ErrUnknown, rpctypes.ErrGRPCTimeout},
	{eventlog.ErrCompacted, rpctypes.ErrGRPCCompacted},
	{eventlog.ErrCorrupt, rpctypes.ErrGRPCCorrupt},
	{eventlog.ErrFailed, rpctypes.ErrGRPCStopped},
	{eventlog.ErrClosed, rpctypes.ErrGRPCStopped},
}

// errTooManyKeys is keelson's own: etcd would try.
var errTooManyKeys = status.Error(codes.ResourceExhausted, "keelson: the ranges of the transaction go through too many keys: send them one by one")

// errTransferTimeout is etcd's, which has no name for clients.
var errTransferTimeout = status.Error(codes.Unknown, "etcdserver: request timed out, leader transfer took too long")

// toStatus returns the gRPC status of err. ctx is the client's context: when
// that has not ended, a deadline that passed was the server's own.
func toStatus(ctx context.Context, err error) error {
	if err == nil {
		return nil
	}
	if ctx.Err() != nil && errors.Is(err, ctx.Err()) {
		return status.FromContextError(ctx.Err()).Err()
	}
	for _, s := range statuses {
		if errors.Is(err, s.sentinel) {
			return s.status
		}
	}
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		return rpctypes.ErrGRPCTimeout
	case errors.Is(err, context.Canceled):
		return rpctypes.ErrGRPCCanceled
	}
	if _, ok := status.FromError(err); ok { // a stream's send failed
		return err
	}
	return status.Error(codes.Unknown, err.Error())
}

// codeOf returns the code that gRPC sends for a handler's error.
func codeOf(err error) codes.Code {
	if err == nil {
		return codes.OK
	}
	if st, ok := status.FromError(err); ok {
		return st.Code()
	}
	return status.FromContextError(err).Code()
}

// unimplemented is the answer to what etcd has and keelson has not.
func unimplemented(what string) error {
	return status.Error(codes.Unimplemented, "keelson: "+what)
}
