package embed

import (
	"strings"
	"testing"
)

// TestJoinWithoutQuorum: who joins a cluster that has no leader is told that.
func TestJoinWithoutQuorum(t *testing.T) {
	t.Parallel()
	dir := shortDir(t)
	startNode(t, nodeConfig(dir, 1, ClusterStateNew, 1, 2))
	_, err := Start(t.Context(), nodeConfig(dir, 3, ClusterStateExisting, 1, 3))
	if err == nil || !strings.Contains(err.Error(), "takes a leader") || !strings.Contains(err.Error(), "it has not answered within 5s") {
		t.Errorf("Start: %v", err)
	}
}
