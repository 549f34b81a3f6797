package embed

import (
	"strings"
	"testing"
	"time"

	"github.com/sirupsen/logrus"
)

// TestStranger: a node of another cluster refuses what is sent to it, which is
// logged once, and not as if it were reached in between.
func TestStranger(t *testing.T) {
	t.Parallel()
	dir := shortDir(t)
	cfg := nodeConfig(dir, 1, ClusterStateNew, 1, 2)
	_, hook := start(t, cfg)
	stranger := nodeConfig(dir, 2, ClusterStateNew, 1, 2)
	stranger.Cluster.InitialClusterToken = "another"
	start(t, stranger)
	refused := func(e *logrus.Entry) bool {
		err, _ := e.Data[logrus.ErrorKey].(error)
		return err != nil && strings.Contains(err.Error(), "belongs to cluster")
	}
	var end time.Time
	for deadline := time.Now().Add(30 * time.Second); end.IsZero() || time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		for _, e := range hook.AllEntries() {
			if e.Message == "the node is reached again" {
				t.Fatalf("%s %v", e.Message, e.Data)
			}
			if end.IsZero() && refused(e) {
				end = time.Now().Add(3 * cfg.Cluster.ElectionTimeout) // it asks for votes again and again
			}
		}
		if end.IsZero() && time.Now().After(deadline) {
			t.Fatal("it is not refused within 30 s")
		}
	}
}
