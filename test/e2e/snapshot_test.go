package e2e

import (
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"roseau/internal/base/size"
)

// Snapshots of a volume keep their content while it is overwritten, a node loses
// power, a disk is pulled and snapshots beside them are deleted; then their space
// comes back.
func TestSnapshots(t *testing.T) {
	must(t, time.Minute, "volume", "create", "snap", "--size", "64MiB")
	defer must(t, time.Minute, "volume", "delete", "snap", "--confirm", "snap")
	dir := t.TempDir()
	image := func(name string) string {
		path := filepath.Join(dir, name)
		shell(t, "dd", "if=/dev/urandom", "of="+path, "bs=1M", "count=64", "status=none")
		return path
	}
	a, b, c := image("a"), image("b"), image("c")
	uri := serveOn(t, "n1", "snap")
	shell(t, "nbdcopy", "--flush", a, uri)
	const whole = 3 * 64 << 20 // three copies
	snapEventually(t, time.Minute, "the disks report the volume's space", func() bool { return usedBytes(t) >= whole })
	before := usedBytes(t)
	must(t, time.Minute, "volume", "snapshot", "create", "snap", "first")
	refused(t, 4, []string{`has a snapshot "first"`}, "volume", "snapshot", "create", "snap", "first")
	refused(t, 2, []string{"name"}, "volume", "snapshot", "create", "snap", "No Name")
	shell(t, "nbdcopy", "--flush", b, uri)

	must(t, time.Minute, "lab", "node", "cut", "n3", "--name", labName)
	must(t, 2*time.Minute, "volume", "snapshot", "create", "snap", "second")
	shell(t, "nbdcopy", "--flush", c, uri)
	must(t, time.Minute, "lab", "node", "restore", "n3", "--name", labName)
	snapEventually(t, 2*time.Minute, "three copies in sync", func() bool { return inSync(t, "snap") })

	pulled := diskOf(t, "snap", "n2")
	must(t, time.Minute, "lab", "disk", "pull", "n2/"+pulled, "--name", labName)
	must(t, 2*time.Minute, "volume", "snapshot", "create", "snap", "third")
	must(t, time.Minute, "lab", "disk", "insert", "n2/"+pulled, "--name", labName)

	var list []struct {
		Name string `json:"name"`
	}
	decode(t, must(t, time.Minute, "volume", "snapshot", "list", "snap", "-o", "json"), &list)
	if len(list) != 3 || list[0].Name != "first" || list[2].Name != "third" {
		t.Fatalf("snapshots: %+v", list)
	}
	back := filepath.Join(dir, "back")
	shell(t, "nbdcopy", uri, back)
	shell(t, "cmp", c, back)
	must(t, time.Minute, "volume", "unserve", "snap")
	// Each node reads its own copy.
	for _, want := range []struct{ node, snapshot, image string }{
		{"n1", "first", a}, {"n3", "first", a}, {"n3", "second", b}, {"n1", "third", c},
	} {
		uri := serveOn(t, want.node, "snap", "--snapshot", want.snapshot)
		if out := shell(t, "nbdinfo", uri); !strings.Contains(out, "is_read_only: true") {
			t.Errorf("the export of a snapshot can be written:\n%s", out)
		}
		shell(t, "nbdcopy", uri, back)
		shell(t, "cmp", want.image, back)
		refused(t, 4, []string{"being served"}, "volume", "snapshot", "delete", "snap", want.snapshot, "--confirm", want.snapshot)
		must(t, time.Minute, "volume", "unserve", "snap")
	}
	snapEventually(t, time.Minute, "the disks report the snapshots' space", func() bool { return usedBytes(t) >= before+whole })
	refused(t, 2, []string{"named once"}, "volume", "snapshot", "delete", "snap", "first")
	snapEventually(t, 4*time.Minute, "three copies in sync", func() bool { return inSync(t, "snap") })
	cloneOf(t, c, back)

	must(t, time.Minute, "volume", "snapshot", "delete", "snap", "first", "--confirm", "first")
	uri = serveOn(t, "n2", "snap", "--snapshot", "second")
	shell(t, "nbdcopy", uri, back)
	shell(t, "cmp", b, back)
	must(t, time.Minute, "volume", "unserve", "snap")
	must(t, time.Minute, "volume", "snapshot", "delete", "snap", "second", "--confirm", "second")
	must(t, time.Minute, "volume", "snapshot", "delete", "snap", "third", "--confirm", "third")
	uri = serveOn(t, "n2", "snap")
	snapEventually(t, 2*time.Minute, "the space of the snapshots is free", func() bool { return usedBytes(t) <= before })
	shell(t, "nbdcopy", uri, back)
	shell(t, "cmp", c, back)
	must(t, time.Minute, "volume", "unserve", "snap")
}

// cloneOf makes a clone of volume snap, which holds image, reads it while it may read
// its parent, and again when the parent's snapshot is gone.
func cloneOf(t *testing.T, image, back string) {
	t.Helper()
	must(t, time.Minute, "volume", "snapshot", "create", "snap", "base")
	must(t, time.Minute, "volume", "clone", "snap@base", "copy")
	refused(t, 2, []string{"VOLUME@SNAPSHOT"}, "volume", "clone", "snap", "other")
	refused(t, 3, []string{"not found"}, "volume", "clone", "snap@no", "other")
	parent := func() string {
		var v struct {
			Status struct {
				Parent string `json:"parent"`
			} `json:"status"`
		}
		decode(t, must(t, time.Minute, "volume", "show", "copy", "-o", "json"), &v)
		return v.Status.Parent
	}
	out, err := cli(time.Minute, "volume", "snapshot", "delete", "snap", "base", "--confirm", "base")
	gone := err == nil
	switch {
	case gone && parent() != "":
		t.Fatalf("the snapshot of a clone that needs it was deleted:\n%s", out)
	case !gone && !strings.Contains(out, "still read it: copy"):
		t.Fatalf("delete the snapshot of a clone: %v\n%s", err, out)
	}
	uri := serveOn(t, "n3", "copy")
	shell(t, "nbdcopy", uri, back)
	shell(t, "cmp", image, back)
	snapEventually(t, 2*time.Minute, "the clone needs its parent no more", func() bool { return parent() == "" })
	if !gone {
		must(t, time.Minute, "volume", "snapshot", "delete", "snap", "base", "--confirm", "base")
	}
	must(t, time.Minute, "volume", "unserve", "copy")
	uri = serveOn(t, "n2", "copy")
	shell(t, "nbdcopy", uri, back)
	shell(t, "cmp", image, back)
	must(t, time.Minute, "volume", "unserve", "copy")
	must(t, time.Minute, "volume", "delete", "copy", "--confirm", "copy")
}

// serveOn serves a volume on a node of the lab and returns the NBD address.
func serveOn(t *testing.T, node string, args ...string) string {
	t.Helper()
	var socket string
	// A node that has just come back may still be spoken to over the connection
	// that it had before.
	snapEventually(t, 30*time.Second, "volume serve on "+node, func() bool {
		out, err := cli(time.Minute, append([]string{"volume", "serve", "--node", node}, args...)...)
		socket = strings.TrimSpace(out)
		return err == nil
	})
	var st struct {
		Nodes []struct {
			Name    string `json:"name"`
			InitPID int    `json:"init_pid"`
		} `json:"nodes"`
	}
	decode(t, must(t, time.Minute, "lab", "status", "--name", labName, "-o", "json"), &st)
	for _, n := range st.Nodes {
		if n.Name == node {
			return "nbd+unix:///?socket=" + filepath.Join("/proc", strconv.Itoa(n.InitPID), "root", socket)
		}
	}
	t.Fatalf("no node %s", node)
	return ""
}

func shell(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

func snapEventually(t *testing.T, limit time.Duration, what string, cond func() bool) {
	t.Helper()
	for end := time.Now().Add(limit); time.Now().Before(end); time.Sleep(200 * time.Millisecond) {
		if cond() {
			return
		}
	}
	t.Fatalf("not within %s: %s\n%s", limit, what, must(t, time.Minute, "volume", "show", "snap"))
}

type copyInfo struct {
	Disk   string `json:"disk"`
	Node   string `json:"node"`
	InSync bool   `json:"in_sync"`
}

func copiesOf(t *testing.T, vol string) []copyInfo {
	t.Helper()
	var v struct {
		Copies []copyInfo `json:"copies"`
	}
	decode(t, must(t, time.Minute, "volume", "show", vol, "-o", "json"), &v)
	return v.Copies
}

func inSync(t *testing.T, vol string) bool {
	t.Helper()
	cs := copiesOf(t, vol)
	for _, c := range cs {
		if !c.InSync {
			return false
		}
	}
	return len(cs) >= 3
}

// diskOf returns the lab's name of the disk of a node that has a copy.
func diskOf(t *testing.T, vol, node string) string {
	t.Helper()
	for _, c := range copiesOf(t, vol) {
		if c.Node == node {
			return c.Disk[strings.LastIndexAny(c.Disk, "/-")+1:]
		}
	}
	t.Fatalf("no copy of %s on %s", vol, node)
	return ""
}

// usedBytes is what all disks of the cluster say is in use.
func usedBytes(t *testing.T) (sum int64) {
	t.Helper()
	var out struct {
		Disks []struct {
			Used size.Bytes `json:"used"`
		} `json:"disks"`
	}
	decode(t, must(t, time.Minute, "disk", "list", "-o", "json"), &out)
	for _, d := range out.Disks {
		sum += int64(d.Used)
	}
	return sum
}
