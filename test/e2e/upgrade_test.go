package e2e

import (
	"maps"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// versions are those that the nodes say they run, by node.
func versions(t *testing.T) map[string]string {
	t.Helper()
	out, err := cli(time.Minute, "node", "list", "-o", "json")
	if err != nil {
		return nil // a node that is asked goes down just now
	}
	var ns []struct {
		Name   string `json:"name"`
		Status struct {
			Version string `json:"version"`
		} `json:"status"`
	}
	decode(t, out, &ns)
	vs := map[string]string{}
	for _, n := range ns {
		vs[n.Name] = n.Status.Version
	}
	return vs
}

// Row 27: every node gets another build of the same code, one at a time, by a rolling
// restart under a guest that writes: both builds are in the cluster meanwhile. The drill
// demands that no VM restarts, no copy is missed and no write is lost.
func TestTwoBuilds(t *testing.T) {
	long(t)
	heals(t)
	const next = "e2e-next-build"
	root := filepath.Dir(filepath.Dir(roseau))
	binary := filepath.Join(t.TempDir(), "roseau")
	build := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w -X roseau/internal/base/version.version="+next, "-o", binary, "./cmd/roseau")
	build.Dir = root
	build.Env = append(append(build.Environ(), goHome...), "CGO_ENABLED=0", "GOFLAGS=-buildvcs=false")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	was := versions(t)
	nodes := slices.Sorted(maps.Keys(was))
	if len(nodes) != 3 {
		t.Fatalf("versions %v", was)
	}
	for _, n := range nodes {
		must(t, time.Minute, "lab", "node", "binary", n, binary, "--name", labName)
	}
	defer func() { // what they run now they run until they boot again: it is the same code
		for _, n := range nodes {
			must(t, time.Minute, "lab", "node", "binary", n, "--name", labName)
		}
	}()
	report := t.TempDir()
	rolling := start(6*time.Minute, "drill", "run", "--report", report, "rolling-restart")
	both := 0
	for done := false; !done; {
		select {
		case <-rolling.done:
			done = true
		case <-time.After(200 * time.Millisecond):
		}
		n := 0
		vs := versions(t)
		for _, v := range vs {
			if v == next {
				n++
			}
		}
		if n > 0 && n < len(vs) {
			both++
		}
	}
	t.Log(rolling.works(t))
	if both == 0 {
		t.Error("no two builds were ever seen in the cluster together")
	}
	for n, v := range versions(t) {
		if v != next {
			t.Errorf("node %s runs %q", n, v)
		}
		if out := inNode(t, n, "roseau", "--version"); !strings.Contains(out, next) {
			t.Errorf("roseau of node %s: %s", n, out)
		}
	}
	nodesReady(t)
	noGuardIsLeft(t)
}
