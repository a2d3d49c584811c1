package e2e

import (
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
	image := func(name string) string { return randomFile(t, filepath.Join(dir, name), 64) }
	a, b, c := image("a"), image("b"), image("c")
	uri := serveOn(t, "n1", "snap")
	tool(t, "nbdcopy", "--flush", a, uri)
	const whole = 3 * 64 << 20 // three copies
	eventually(t, time.Minute, "the disks report the volume's space", func() bool { return usedBytes(t) >= whole })
	before := usedBytes(t)
	must(t, time.Minute, "volume", "snapshot", "create", "snap", "first")
	refused(t, 4, []string{`has a snapshot "first"`}, "volume", "snapshot", "create", "snap", "first")
	refused(t, 2, []string{"name"}, "volume", "snapshot", "create", "snap", "No Name")
	tool(t, "nbdcopy", "--flush", b, uri)

	must(t, time.Minute, "lab", "node", "cut", "n3", "--name", labName)
	must(t, 2*time.Minute, "volume", "snapshot", "create", "snap", "second")
	tool(t, "nbdcopy", "--flush", c, uri)
	must(t, time.Minute, "lab", "node", "restore", "n3", "--name", labName)
	eventually(t, 2*time.Minute, "three copies in sync", func() bool { return inSync(t, "snap") })

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
	tool(t, "nbdcopy", uri, back)
	tool(t, "cmp", c, back)
	must(t, time.Minute, "volume", "unserve", "snap")
	// Each node reads its own copy.
	for _, want := range []struct{ node, snapshot, image string }{
		{"n1", "first", a}, {"n3", "first", a}, {"n3", "second", b}, {"n1", "third", c},
	} {
		uri := serveOn(t, want.node, "snap", "--snapshot", want.snapshot)
		if out := tool(t, "nbdinfo", uri); !strings.Contains(out, "is_read_only: true") {
			t.Errorf("the export of a snapshot can be written:\n%s", out)
		}
		tool(t, "nbdcopy", uri, back)
		tool(t, "cmp", want.image, back)
		refused(t, 4, []string{"being served"}, "volume", "snapshot", "delete", "snap", want.snapshot, "--confirm", want.snapshot)
		must(t, time.Minute, "volume", "unserve", "snap")
	}
	eventually(t, time.Minute, "the disks report the snapshots' space", func() bool { return usedBytes(t) >= before+whole })
	refused(t, 2, []string{"named once"}, "volume", "snapshot", "delete", "snap", "first")
	eventually(t, 4*time.Minute, "three copies in sync", func() bool { return inSync(t, "snap") })
	cloneOf(t, c, back)

	must(t, time.Minute, "volume", "snapshot", "delete", "snap", "first", "--confirm", "first")
	uri = serveOn(t, "n2", "snap", "--snapshot", "second")
	tool(t, "nbdcopy", uri, back)
	tool(t, "cmp", b, back)
	must(t, time.Minute, "volume", "unserve", "snap")
	must(t, time.Minute, "volume", "snapshot", "delete", "snap", "second", "--confirm", "second")
	must(t, time.Minute, "volume", "snapshot", "delete", "snap", "third", "--confirm", "third")
	uri = serveOn(t, "n2", "snap")
	eventually(t, 2*time.Minute, "the space of the snapshots is free", func() bool { return usedBytes(t) <= before })
	tool(t, "nbdcopy", uri, back)
	tool(t, "cmp", c, back)
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
	tool(t, "nbdcopy", uri, back)
	tool(t, "cmp", image, back)
	eventually(t, 2*time.Minute, "the clone needs its parent no more", func() bool { return parent() == "" })
	if !gone {
		must(t, time.Minute, "volume", "snapshot", "delete", "snap", "base", "--confirm", "base")
	}
	must(t, time.Minute, "volume", "unserve", "copy")
	uri = serveOn(t, "n2", "copy")
	tool(t, "nbdcopy", uri, back)
	tool(t, "cmp", image, back)
	must(t, time.Minute, "volume", "unserve", "copy")
	must(t, time.Minute, "volume", "delete", "copy", "--confirm", "copy")
}

// serveOn serves a volume on a node of the lab and returns the NBD address.
func serveOn(t *testing.T, node string, args ...string) string {
	t.Helper()
	var socket string
	// A node that has just come back may still be spoken to over the connection
	// that it had before.
	eventually(t, 30*time.Second, "volume serve on "+node, func() bool {
		out, err := cli(time.Minute, append([]string{"volume", "serve", "--node", node}, args...)...)
		socket = strings.TrimSpace(out)
		return err == nil
	})
	return nbdURI(t, node, socket)
}

// nbdURI is where this machine reaches a socket of a node.
func nbdURI(t *testing.T, node, socket string) string {
	t.Helper()
	return "nbd+unix:///?socket=" + filepath.Join("/proc", strconv.Itoa(labNode(t, node).InitPID), "root", socket)
}

// randomFile makes a file of so many MiB of random data.
func randomFile(t *testing.T, path string, mib int) string {
	t.Helper()
	tool(t, "dd", "if=/dev/urandom", "of="+path, "bs=1M", "count="+strconv.Itoa(mib), "status=none")
	return path
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
