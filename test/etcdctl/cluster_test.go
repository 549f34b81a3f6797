package etcdctl

import (
	"encoding/json"
	"os/exec"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"github.com/keelson-io/keelson/test/harness"
)

// startServer starts a server, or with KEELSON_TEST_DATASTORE=cluster three nodes,
// of etcd as of keelson: then it is the first, which leads when all have begun.
func startServer(t *testing.T, backend harness.Backend, args ...string) *harness.Server {
	t.Helper()
	if !harness.InCluster() {
		return harness.StartServer(t, backend, args...)
	}
	first := harness.StartCluster(t, backend, args...)[0]
	var names []string
	for _, n := range first.Nodes {
		names = append(names, n.Endpoint)
	}
	all := strings.Join(names, ",")
	etcdctl := func(into any, args ...string) error {
		out, err := exec.CommandContext(t.Context(), harness.Tool(t, "etcdctl"), args...).Output()
		if err == nil && into != nil {
			err = json.Unmarshal(out, into)
		}
		return err
	}
	type nodeStatus struct {
		Endpoint string
		Status   *pb.StatusResponse
	}
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		var list pb.MemberListResponse
		var status []nodeStatus
		if etcdctl(&list, "--endpoints", all, "member", "list", "-w", "json") != nil ||
			slices.ContainsFunc(list.Members, func(m *pb.Member) bool { return len(m.ClientURLs) == 0 }) ||
			etcdctl(&status, "--endpoints", all, "endpoint", "status", "-w", "json") != nil ||
			slices.ContainsFunc(status, func(s nodeStatus) bool { return s.Status.StorageVersion != "3.7.0" }) { // etcd's is older at first
			continue
		}
		own := status[slices.IndexFunc(status, func(s nodeStatus) bool { return s.Endpoint == first.Endpoint })].Status
		if own.Leader == own.Header.MemberId {
			return first
		}
		_ = etcdctl(nil, "--endpoints", all, "move-leader", strconv.FormatUint(own.Header.MemberId, 16)) // again, if it was not done
	}
	t.Fatalf("the first node does not lead within %v", patience)
	return nil
}

// ofMembers are commands that print something for each member. Members come in
// the order of their ids, which are not the same on both.
var ofMembers = regexp.MustCompile(`--cluster|^member list|^alarm|^endpoint (?:status|health)`)

// severalAlarms are those that more than one node of etcd has raised, one after
// the other.
var severalAlarms = regexp.MustCompile(`((?:memberID:\S+ alarm:)?NOSPACE)(?:[ ,]+(?:memberID:\S+ alarm:)?NOSPACE)+`)

// anyOrder brings what a cluster's members have in a command's output into an
// order that is not theirs, and says once what is the same of each.
func (c ctl) anyOrder(command, out string) string {
	if c.nodes == 1 || !ofMembers.MatchString(command) {
		return out
	}
	out = severalAlarms.ReplaceAllString(out, "$1")
	lines := strings.Split(strings.NewReplacer("[{", "[\n{", "},{", "}\n{", "}]", "}\n]").Replace(out), "\n")
	slices.Sort(lines)
	return strings.Join(slices.Compact(lines), "\n")
}
