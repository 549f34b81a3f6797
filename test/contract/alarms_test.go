package contract

import (
	"fmt"
	"net/http"
	"strings"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc/codes"
)

// raisedBy fills the quota without being refused, and checks that what is
// asked for next is, and raises the alarm.
func (e *env) raisedBy(call func() error) {
	e.Helper()
	var err error
	for range 200 {
		if err = call(); err != nil {
			break
		}
	}
	e.fails("past the quota", err, codes.ResourceExhausted, textNoSpace)
	raised, err := e.maint.Alarm(e.ctx, &pb.AlarmRequest{})
	must(e, err)
	equal(e, "alarms", len(raised.Alarms), 1)
	equal(e, "alarm", raised.Alarms[0].Alarm, pb.AlarmType_NOSPACE)
	_, err = e.kv.Put(e.ctx, &pb.PutRequest{Key: []byte("small")})
	e.fails("a small put", err, codes.ResourceExhausted, textNoSpace)
}

func quotaOfTxn(e *env) {
	value := strings.Repeat("v", 256<<10)
	n := 0
	e.raisedBy(func() error {
		n++
		_, err := e.kv.Txn(e.ctx, &pb.TxnRequest{Success: []*pb.RequestOp{opPut(fmt.Sprint("k", n), value)}})
		return err
	})
}

// quotaOfGrant fills up with puts as long as a grant is still taken.
func quotaOfGrant(e *env) {
	value := []byte(strings.Repeat("v", 64<<10))
	n := 0
	e.raisedBy(func() error {
		n++
		if _, err := e.lease.LeaseGrant(e.ctx, &pb.LeaseGrantRequest{TTL: 1000}); err != nil {
			return err
		}
		_, err := e.kv.Put(e.ctx, &pb.PutRequest{Key: []byte(fmt.Sprint("k", n)), Value: value})
		return err
	})
}

// corruptAlarm raises CORRUPT, after which nothing is read or written.
func corruptAlarm(e *env) {
	const text = "etcdserver: corrupt cluster"
	e.grant(1, 100)
	e.put("a", "1")
	member := e.get("a").Header.MemberId
	alarm := func(action pb.AlarmRequest_AlarmAction) {
		e.Helper()
		_, err := e.maint.Alarm(e.ctx, &pb.AlarmRequest{Action: action, MemberID: member, Alarm: pb.AlarmType_CORRUPT})
		must(e, err)
	}
	alarm(pb.AlarmRequest_ACTIVATE)
	_, err := e.kv.Put(e.ctx, &pb.PutRequest{Key: []byte("a")})
	e.fails("put", err, codes.DataLoss, text)
	_, err = e.kv.DeleteRange(e.ctx, &pb.DeleteRangeRequest{Key: []byte("a")})
	e.fails("delete", err, codes.DataLoss, text)
	_, err = e.kv.Txn(e.ctx, &pb.TxnRequest{Success: []*pb.RequestOp{opDel("a", "")}})
	e.fails("txn", err, codes.DataLoss, text)
	_, err = e.kv.Compact(e.ctx, &pb.CompactionRequest{Revision: 2})
	e.fails("compact", err, codes.DataLoss, text)
	_, err = e.lease.LeaseGrant(e.ctx, &pb.LeaseGrantRequest{TTL: 100})
	e.fails("grant", err, codes.DataLoss, text)
	_, err = e.lease.LeaseRevoke(e.ctx, &pb.LeaseRevokeRequest{ID: 1})
	e.fails("revoke", err, codes.DataLoss, text)
	for path, want := range map[string]string{
		"/health":                 `503 {"health":"false","reason":"ALARM CORRUPT"}`,
		"/health?exclude=NOSPACE": `503 {"health":"false","reason":"ALARM CORRUPT"}`,
		"/health?exclude=CORRUPT": `200 {"health":"true","reason":""}`,
		"/readyz/data_corruption": "503 [-]data_corruption failed: alarm activated: CORRUPT",
		"/livez":                  "200 ok",
	} {
		status, body, err := e.srv.Do(e.ctx, http.MethodGet, path, "")
		must(e, err)
		equal(e, path, fmt.Sprint(status, " ", strings.TrimSpace(body)), want)
	}
	alarm(pb.AlarmRequest_DEACTIVATE)
	equal(e, "value afterwards", string(e.get("a").Kvs[0].Value), "1")
}
