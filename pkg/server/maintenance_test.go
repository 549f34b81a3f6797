package server

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc/codes"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"
)

func TestStatus(t *testing.T) {
	m := startMember(t, memberOptions{})
	ctx := short(t)
	if _, err := m.kv.Put(ctx, &pb.PutRequest{Key: []byte("k"), Value: make([]byte, 1000)}); err != nil {
		t.Fatal(err)
	}
	got, err := m.maintenance.Status(ctx, &pb.StatusRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if got.Version != "3.7.3" || got.StorageVersion != "3.7.0" || got.Leader != testMemberID || got.IsLearner ||
		got.RaftTerm != 1 || got.RaftIndex != 1 || got.RaftAppliedIndex != 1 || got.Header.GetRevision() != 2 ||
		got.DbSizeQuota != 2<<30 || got.DowngradeInfo == nil || got.DowngradeInfo.Enabled || len(got.Errors) != 0 {
		t.Errorf("status %v", got)
	}
	if got.DbSize < 1000 || got.DbSizeInUse < 1000 || got.DbSizeInUse > got.DbSize {
		t.Errorf("size %d, in use %d", got.DbSize, got.DbSizeInUse)
	}
}

func TestAlarms(t *testing.T) {
	m := startMember(t, memberOptions{})
	ctx := short(t)
	alarm := func(action pb.AlarmRequest_AlarmAction, kind pb.AlarmType) *pb.AlarmResponse {
		t.Helper()
		resp, err := m.maintenance.Alarm(ctx, &pb.AlarmRequest{Action: action, MemberID: testMemberID, Alarm: kind})
		if err != nil {
			t.Fatal(err)
		}
		if resp.Header.GetMemberId() != testMemberID || resp.Header.GetRevision() == 0 {
			t.Errorf("header %v", resp.Header)
		}
		return resp
	}
	if got := alarm(pb.AlarmRequest_GET, pb.AlarmType_NONE); len(got.Alarms) != 0 {
		t.Errorf("alarms at first: %v", got)
	}
	if got := alarm(pb.AlarmRequest_ACTIVATE, pb.AlarmType_NOSPACE); len(got.Alarms) != 1 {
		t.Errorf("activated: %v", got)
	}
	_, err := m.maintenance.Alarm(ctx, &pb.AlarmRequest{Action: 9})
	wantStatus(t, err, codes.InvalidArgument, "keelson: there is no alarm action 9")
	st, err := m.maintenance.Status(ctx, &pb.StatusRequest{})
	if err != nil || len(st.Errors) != 1 || !strings.Contains(st.Errors[0], "NOSPACE") {
		t.Errorf("status errors %q, %v", st.GetErrors(), err)
	}
	_, err = m.kv.Put(ctx, &pb.PutRequest{Key: []byte("k")})
	wantError(t, err, rpctypes.ErrGRPCNoSpace)
	_, err = m.lease.LeaseGrant(ctx, &pb.LeaseGrantRequest{TTL: 5})
	wantError(t, err, rpctypes.ErrGRPCNoSpace)
	_, err = m.kv.Txn(ctx, &pb.TxnRequest{Failure: list(opPut("k"))})
	wantError(t, err, rpctypes.ErrGRPCNoSpace)
	if _, err := m.kv.DeleteRange(ctx, &pb.DeleteRangeRequest{Key: []byte("k")}); err != nil {
		t.Errorf("delete under NOSPACE: %v", err)
	}
	if got := alarm(pb.AlarmRequest_DEACTIVATE, pb.AlarmType_NOSPACE); len(got.Alarms) != 1 {
		t.Errorf("disarmed: %v", got)
	}
	if _, err = m.kv.Put(ctx, &pb.PutRequest{Key: []byte("k")}); err != nil {
		t.Errorf("put after the disarm: %v", err)
	}
}

func TestQuota(t *testing.T) {
	m := startMember(t, memberOptions{quotaBytes: 10_000, config: func(c *Config) { c.QuotaBytes = 10_000 }})
	ctx := short(t)
	var err error
	for range 20 {
		if _, err = m.kv.Put(ctx, &pb.PutRequest{Key: []byte("k"), Value: make([]byte, 1000)}); err != nil {
			break
		}
	}
	wantError(t, err, rpctypes.ErrGRPCNoSpace)
	list, err := m.client.AlarmList(ctx)
	if err != nil || len(list.Alarms) != 1 || list.Alarms[0].Alarm != pb.AlarmType_NOSPACE || list.Alarms[0].MemberID != testMemberID {
		t.Errorf("alarms %v, %v", list, err)
	}
}

func TestHashKV(t *testing.T) {
	m := startMember(t, memberOptions{})
	ctx := short(t)
	for range 3 {
		if _, err := m.kv.Put(ctx, &pb.PutRequest{Key: []byte("k")}); err != nil {
			t.Fatal(err)
		}
	}
	now, err := m.maintenance.HashKV(ctx, &pb.HashKVRequest{})
	if err != nil || now.HashRevision != 4 || now.CompactRevision != -1 || now.Header.GetRevision() != 4 || now.Header.GetMemberId() != testMemberID {
		t.Errorf("HashKV: %v, %v", now, err)
	}
	past, err := m.maintenance.HashKV(ctx, &pb.HashKVRequest{Revision: 3})
	if err != nil || past.HashRevision != 3 || past.Header.GetRevision() != 4 || past.Hash == now.Hash {
		t.Errorf("HashKV of the past: %v, %v", past, err)
	}
	_, err = m.maintenance.HashKV(ctx, &pb.HashKVRequest{Revision: 5})
	wantError(t, err, rpctypes.ErrGRPCFutureRev)
	if _, err := m.kv.Compact(ctx, &pb.CompactionRequest{Revision: 4, Physical: true}); err != nil {
		t.Fatal(err)
	}
	_, err = m.maintenance.HashKV(ctx, &pb.HashKVRequest{Revision: 3})
	wantError(t, err, rpctypes.ErrGRPCCompacted)
	hash, err := m.maintenance.Hash(ctx, &pb.HashRequest{})
	if err != nil || hash.Hash == 0 || hash.Header.GetRevision() != 4 {
		t.Errorf("Hash: %v, %v", hash, err)
	}
}

func TestDefragment(t *testing.T) {
	m := startMember(t, memberOptions{})
	resp, err := m.maintenance.Defragment(short(t), &pb.DefragmentRequest{})
	if err != nil || resp.Header != nil {
		t.Errorf("Defragment: %v, %v; want no header", resp, err)
	}
}

func TestMemberList(t *testing.T) {
	m := startMember(t, memberOptions{})
	got, err := m.client.MemberList(short(t))
	if err != nil || len(got.Members) != 1 {
		t.Fatalf("members %v, %v", got, err)
	}
	one := got.Members[0]
	if one.ID != testMemberID || one.Name != "test" || one.IsLearner ||
		!slices.Equal(one.PeerURLs, []string{"http://localhost:2380"}) || !slices.Equal(one.ClientURLs, []string{"http://localhost:2379"}) {
		t.Errorf("member %v", one)
	}
}

// What a server without peers and users cannot do, and what it answers to
// questions that still have an answer.
func TestAnswersWithoutPeersAndUsers(t *testing.T) {
	m := startMember(t, memberOptions{})
	ctx := short(t)
	unimplemented := status.Error(codes.Unimplemented, "")
	for _, tc := range []struct {
		name string
		call func() error
		want error // Unimplemented: with any text of ours
	}{
		{"MoveLeader to itself", func() error {
			_, err := m.maintenance.MoveLeader(ctx, &pb.MoveLeaderRequest{TargetID: testMemberID})
			return err
		}, nil},
		{"MoveLeader", func() error {
			_, err := m.maintenance.MoveLeader(ctx, &pb.MoveLeaderRequest{TargetID: 5})
			return err
		}, rpctypes.ErrGRPCBadLeaderTransferee},
		{"Downgrade", func() error {
			_, err := m.maintenance.Downgrade(ctx, &pb.DowngradeRequest{Version: "3.6.0"})
			return err
		}, unimplemented},
		{"Downgrade to what etcd 3.7 cannot be", func() error {
			_, err := m.maintenance.Downgrade(ctx, &pb.DowngradeRequest{Action: pb.DowngradeRequest_ENABLE, Version: "3.5"})
			return err
		}, rpctypes.ErrGRPCInvalidDowngradeTargetVersion},
		{"Downgrade to no version", func() error {
			_, err := m.maintenance.Downgrade(ctx, &pb.DowngradeRequest{Version: "x"})
			return err
		}, rpctypes.ErrGRPCWrongDowngradeVersionFormat},
		{"MemberAdd with bad URLs", func() error {
			_, err := m.cluster.MemberAdd(ctx, &pb.MemberAddRequest{PeerURLs: []string{"://"}})
			return err
		}, rpctypes.ErrGRPCMemberBadURLs},
		{"MemberAdd without URLs", func() error {
			_, err := m.cluster.MemberAdd(ctx, &pb.MemberAddRequest{})
			return err
		}, rpctypes.ErrGRPCMemberBadURLs},
		{"MemberAdd", func() error {
			_, err := m.cluster.MemberAdd(ctx, &pb.MemberAddRequest{PeerURLs: []string{"http://127.0.0.1:2380"}})
			return err
		}, unimplemented},
		{"MemberRemove of nobody", func() error {
			_, err := m.cluster.MemberRemove(ctx, &pb.MemberRemoveRequest{ID: 5})
			return err
		}, rpctypes.ErrGRPCMemberNotFound},
		{"MemberRemove", func() error {
			_, err := m.cluster.MemberRemove(ctx, &pb.MemberRemoveRequest{ID: testMemberID})
			return err
		}, unimplemented},
		{"MemberUpdate of nobody", func() error {
			_, err := m.cluster.MemberUpdate(ctx, &pb.MemberUpdateRequest{ID: 5})
			return err
		}, rpctypes.ErrGRPCMemberNotFound},
		{"MemberUpdate", func() error {
			_, err := m.cluster.MemberUpdate(ctx, &pb.MemberUpdateRequest{ID: testMemberID})
			return err
		}, unimplemented},
		{"MemberPromote of nobody", func() error {
			_, err := m.cluster.MemberPromote(ctx, &pb.MemberPromoteRequest{ID: 5})
			return err
		}, rpctypes.ErrGRPCMemberNotFound},
		{"MemberPromote", func() error {
			_, err := m.cluster.MemberPromote(ctx, &pb.MemberPromoteRequest{ID: testMemberID})
			return err
		}, rpctypes.ErrGRPCMemberNotLearner},
		{"AuthDisable", func() error { _, err := m.auth.AuthDisable(ctx, &pb.AuthDisableRequest{}); return err }, nil},
		{"UserList", func() error { _, err := m.auth.UserList(ctx, &pb.AuthUserListRequest{}); return err }, nil},
		{"RoleList", func() error { _, err := m.auth.RoleList(ctx, &pb.AuthRoleListRequest{}); return err }, nil},
		{"Authenticate", func() error { _, err := m.auth.Authenticate(ctx, &pb.AuthenticateRequest{}); return err }, rpctypes.ErrGRPCAuthNotEnabled},
		{"UserGet", func() error { _, err := m.auth.UserGet(ctx, &pb.AuthUserGetRequest{Name: "u"}); return err }, rpctypes.ErrGRPCUserNotFound},
		{"RoleGet", func() error { _, err := m.auth.RoleGet(ctx, &pb.AuthRoleGetRequest{Role: "r"}); return err }, rpctypes.ErrGRPCRoleNotFound},
		{"AuthEnable", func() error { _, err := m.auth.AuthEnable(ctx, &pb.AuthEnableRequest{}); return err }, unimplemented},
		{"UserAdd", func() error { _, err := m.auth.UserAdd(ctx, &pb.AuthUserAddRequest{}); return err }, unimplemented},
		{"UserDelete", func() error { _, err := m.auth.UserDelete(ctx, &pb.AuthUserDeleteRequest{}); return err }, unimplemented},
		{"UserChangePassword", func() error {
			_, err := m.auth.UserChangePassword(ctx, &pb.AuthUserChangePasswordRequest{})
			return err
		}, unimplemented},
		{"UserGrantRole", func() error { _, err := m.auth.UserGrantRole(ctx, &pb.AuthUserGrantRoleRequest{}); return err }, unimplemented},
		{"UserRevokeRole", func() error { _, err := m.auth.UserRevokeRole(ctx, &pb.AuthUserRevokeRoleRequest{}); return err }, unimplemented},
		{"RoleAdd", func() error { _, err := m.auth.RoleAdd(ctx, &pb.AuthRoleAddRequest{}); return err }, unimplemented},
		{"RoleDelete", func() error { _, err := m.auth.RoleDelete(ctx, &pb.AuthRoleDeleteRequest{}); return err }, unimplemented},
		{"RoleGrantPermission", func() error {
			_, err := m.auth.RoleGrantPermission(ctx, &pb.AuthRoleGrantPermissionRequest{})
			return err
		}, unimplemented},
		{"RoleRevokePermission", func() error {
			_, err := m.auth.RoleRevokePermission(ctx, &pb.AuthRoleRevokePermissionRequest{})
			return err
		}, unimplemented},
	} {
		t.Run(tc.name, func(t *testing.T) {
			err := tc.call()
			if errors.Is(tc.want, unimplemented) {
				if st := status.Convert(err); st.Code() != codes.Unimplemented || !strings.HasPrefix(st.Message(), "keelson: ") {
					t.Errorf("got %v, want Unimplemented with a reason", err)
				}
				return
			}
			wantError(t, err, tc.want)
		})
	}
	got, err := m.auth.AuthStatus(ctx, &pb.AuthStatusRequest{})
	if err != nil || got.Enabled || got.AuthRevision != 1 || got.Header.GetRevision() != 1 {
		t.Errorf("AuthStatus: %v, %v", got, err)
	}
}

func TestGRPCHealth(t *testing.T) {
	m := startMember(t, memberOptions{})
	ctx, cancel := context.WithCancel(short(t))
	defer cancel()
	stream, err := healthpb.NewHealthClient(m.conn).Watch(ctx, &healthpb.HealthCheckRequest{})
	if err != nil {
		t.Fatal(err)
	}
	expect := func(want healthpb.HealthCheckResponse_ServingStatus) {
		t.Helper()
		if got, err := stream.Recv(); err != nil || got.Status != want {
			t.Fatalf("health %v, %v; want %v", got, err, want)
		}
	}
	expect(healthpb.HealthCheckResponse_SERVING)
	m.server.SetReady(false)
	expect(healthpb.HealthCheckResponse_NOT_SERVING)
	m.server.SetReady(true)
	expect(healthpb.HealthCheckResponse_SERVING)
	m.server.Stop()
	for err == nil { // perhaps one more NOT_SERVING
		_, err = stream.Recv()
	}
	if got := codeOf(err); got != codes.Canceled || ctx.Err() != nil {
		t.Errorf("the stream ended with %v", err)
	}
	m.server.SetReady(true) // too late
	got, err := healthpb.NewHealthClient(m.conn).Check(ctx, &healthpb.HealthCheckRequest{})
	if err != nil || got.Status != healthpb.HealthCheckResponse_NOT_SERVING {
		t.Errorf("after Stop: %v, %v", got, err)
	}
}
