package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"roseau/internal/model"
	"roseau/internal/svc/care"
	"roseau/internal/svc/pool"
	"roseau/internal/svc/volume"
)

// serve opens a volume on n1 and returns the NBD URI that this machine can use.
func serve(t *testing.T, name string) string {
	t.Helper()
	return nbdURI(t, "n1", strings.TrimSpace(must(t, time.Minute, "volume", "serve", name, "--node", "n1")))
}

// copyOn returns the disk object on a node that has a copy of a volume, and its
// name in the lab.
func copyOn(t *testing.T, name, node string) (disk, inLab string) {
	t.Helper()
	var v volume.Info
	decode(t, must(t, time.Minute, "volume", "show", name, "-o", "json"), &v)
	for _, c := range v.Copies {
		if c.Node == node {
			return c.Disk, node + "/" + filepath.Base(shownDisk(t, c.Disk).Spec.Path)
		}
	}
	t.Fatalf("volume %s has no copy on %s: %+v", name, node, v.Copies)
	return "", ""
}

func shownDisk(t *testing.T, name string) (d model.Disk) {
	t.Helper()
	decode(t, must(t, time.Minute, "disk", "show", name, "-o", "json"), &d)
	return d
}

// eventually asks until cond holds.
func eventually(t *testing.T, limit time.Duration, what string, cond func() bool) {
	t.Helper()
	every(t, 200*time.Millisecond, limit, what, cond)
}

// every is eventually that asks once in a while.
func every(t *testing.T, while, limit time.Duration, what string, cond func() bool) {
	t.Helper()
	for end := time.Now().Add(limit); !cond(); time.Sleep(while) {
		if time.Now().After(end) {
			t.Fatalf("not within %s: %s", limit, what)
		}
	}
}

func tool(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

func onlyPool(t *testing.T) string {
	t.Helper()
	var ps []pool.Info
	decode(t, must(t, time.Minute, "pool", "list", "-o", "json"), &ps)
	if len(ps) != 1 {
		t.Fatalf("%d pools", len(ps))
	}
	return ps[0].Name
}

// made is a volume with 48 MiB of random data that is at rest on its disks.
func made(t *testing.T, name string) (file string) {
	t.Helper()
	must(t, time.Minute, "volume", "create", name, "--size", "128MiB")
	t.Cleanup(func() { must(t, time.Minute, "volume", "delete", name, "--confirm", name) })
	file = filepath.Join(t.TempDir(), "data")
	randomFile(t, file, 48)
	if err := os.Truncate(file, 128<<20); err != nil {
		t.Fatal(err)
	}
	uri := serve(t, name)
	tool(t, "nbdcopy", file, uri)
	return file
}

// A volume that nobody has open rots on one disk: the scrub finds it, it is healed
// by a maintenance writer, and what is read afterwards is right on every copy.
func TestScrubFindsRotOfAStoppedVolume(t *testing.T) {
	p := onlyPool(t)
	file := made(t, "rot")
	must(t, time.Minute, "volume", "unserve", "rot")
	// The first pass brings all of it to its place; the second one finds the rot.
	must(t, 3*time.Minute, "pool", "scrub", "start", p, "--duty", "100")
	disk, inLab := copyOn(t, "rot", "n2")
	before := shownDisk(t, disk).Status.Care.Repaired
	must(t, time.Minute, "lab", "disk", "corrupt", inLab, "--name", labName, "--bits", "200")
	out := must(t, 3*time.Minute, "pool", "scrub", "start", p, "--duty", "100")
	if strings.Contains(out, "nothing bad found") {
		t.Errorf("200 bits were flipped; the scrub says: %s", out)
	}
	var i care.ScrubInfo
	decode(t, must(t, time.Minute, "pool", "scrub", "status", p, "-o", "json"), &i)
	found, left := 0, 0
	for _, d := range i.Disks {
		if d.Disk == disk {
			found, left = d.BadBlocks, d.Damaged
		} else if d.BadBlocks > 0 {
			t.Errorf("%s has %d bad blocks, and was not touched", d.Disk, d.BadBlocks)
		}
	}
	if found == 0 || i.BadBlocks != found || i.Differ != 0 || left != 0 {
		t.Errorf("found %d, left %d: %+v", found, left, i.PoolScrub)
	}
	eventually(t, 30*time.Second, "the repairs to be counted", func() bool {
		c := shownDisk(t, disk).Status.Care
		return c.Repaired >= before+uint64(found) && c.Damaged == 0 && c.BadBlocks > 0
	})
	if s := must(t, time.Minute, "disk", "show", disk); !strings.Contains(s, "bad blocks found") && !strings.Contains(s, fmt.Sprintf("%d bad blocks", found)) {
		t.Errorf("disk show does not tell:\n%s", s)
	}
	if s := must(t, time.Minute, "pool", "show", p); !strings.Contains(s, fmt.Sprintf("%d bad blocks", found)) {
		t.Errorf("pool show does not tell:\n%s", s)
	}
	// A second scrub finds nothing: it was healed, not only counted.
	if out := must(t, 3*time.Minute, "pool", "scrub", "start", p, "--duty", "100"); !strings.Contains(out, "nothing bad found") {
		t.Errorf("after the repair: %s", out)
	}
	tool(t, "cmp", "-n", strconv.Itoa(128<<20), file, fetched(t, "rot"))
}

// fetched serves a volume and copies it into a file.
func fetched(t *testing.T, name string) string {
	t.Helper()
	defer must(t, time.Minute, "volume", "unserve", name)
	return fetchedFrom(t, serve(t, name))
}

// The disk that a writer reads from rots under it: no read fails, everything is
// right, and what was met is repaired and counted.
func TestRotUnderAReader(t *testing.T) {
	file := made(t, "live")
	uri := serve(t, "live") // as it is: it is open on n1
	defer must(t, time.Minute, "volume", "unserve", "live")
	disk, inLab := copyOn(t, "live", "n1")
	// Idle for a moment, so that the data is in its place and not in memory.
	must(t, 3*time.Minute, "pool", "scrub", "start", onlyPool(t), "--duty", "100")
	before := shownDisk(t, disk).Status.Care.Repaired
	must(t, time.Minute, "lab", "disk", "corrupt", inLab, "--name", labName, "--bits", "400")
	for range 3 {
		back := filepath.Join(t.TempDir(), "back")
		tool(t, "nbdcopy", uri, back)
		tool(t, "cmp", file, back)
		os.Remove(back)
	}
	eventually(t, 30*time.Second, "the repairs to be counted", func() bool {
		c := shownDisk(t, disk).Status.Care
		return c.Repaired > before && c.BadBlocks > 0
	})
}

// A disk that answers slowly is reported and nothing else; its health report and
// its lamp are shown. That takes a minute in which this lab has nothing else to do: it
// passes beside TestDoubleFailure, hence a latency far above that of any busy disk.
func TestSlowAndSickDisksAreShown(t *testing.T) {
	t.Parallel()
	must(t, time.Minute, "lab", "disk", "slow", "n3/d1", "--name", labName, "--latency", "250ms")
	defer must(t, time.Minute, "lab", "disk", "insert", "n3/d1", "--name", labName)
	must(t, time.Minute, "lab", "disk", "health", "n2/d3", "--name", labName, "--temperature", "76", "--wear", "85")
	defer must(t, time.Minute, "lab", "disk", "health", "n2/d3", "--name", labName, "--clear")
	name := func(node, path string) string {
		var l struct {
			Disks []struct{ Node, Name, Path string }
		}
		decode(t, must(t, time.Minute, "disk", "list", "-o", "json"), &l)
		for _, d := range l.Disks {
			if d.Node == node && filepath.Base(d.Path) == path {
				return d.Name
			}
		}
		t.Fatalf("no disk %s on %s", path, node)
		return ""
	}
	slow, sick := name("n3", "d1"), name("n2", "d3")
	eventually(t, 30*time.Second, "the alarms of "+sick, func() bool {
		s := must(t, time.Minute, "disk", "show", sick)
		return strings.Contains(s, "critical 76C wear 85%") && strings.Contains(s, "see to its cooling") && strings.Contains(s, "rated endurance")
	})
	must(t, time.Minute, "disk", "locate", sick)
	if s := must(t, time.Minute, "lab", "status", "--name", labName); !strings.Contains(s, "d3 lamp on") {
		t.Errorf("the lamp is not on:\n%s", s)
	}
	must(t, time.Minute, "disk", "locate", sick, "--off")
	// Each look costs the drill beside it.
	every(t, 2*time.Second, 4*time.Minute, slow+" to be reported as slow", func() bool {
		c := shownDisk(t, slow).Status.Care
		return c != nil && c.Slow && c.SlowScore > 6
	})
	if s := must(t, time.Minute, "disk", "list"); !strings.Contains(s, "slow") {
		t.Errorf("disk list does not tell:\n%s", s)
	}
	if d := shownDisk(t, slow); d.Status.State != model.DiskActive {
		t.Errorf("a slow disk is %s: only the hard limit takes a disk out", d.Status.State)
	}
	events := must(t, time.Minute, "events", "--limit", "200")
	for _, w := range []string{"disk " + slow, "is slow", "see to its cooling"} {
		if !strings.Contains(events, w) {
			t.Errorf("the timeline does not say %q", w)
		}
	}
}

// A disk that holds a copy of a volume in use is emptied: the copies move without
// ever being fewer, and the disk is used again afterwards. What would go below the
// copies is refused.
func TestRetireADisk(t *testing.T) {
	file := made(t, "away")
	defer must(t, time.Minute, "volume", "unserve", "away")
	disk, _ := copyOn(t, "away", "n2")
	out := must(t, 3*time.Minute, "disk", "retire", disk)
	defer must(t, time.Minute, "disk", "retire", disk, "--cancel")
	if !strings.Contains(out, "nothing is on it any more") {
		t.Errorf("%s", out)
	}
	var v volume.Info
	decode(t, must(t, time.Minute, "volume", "show", "away", "-o", "json"), &v)
	if v.Status.Copies != 3 || v.Status.Health != model.Healthy {
		t.Errorf("%+v", v.Status)
	}
	for _, c := range v.Copies {
		if c.Disk == disk {
			t.Errorf("%s still has a copy: %+v", disk, c)
		}
	}
	if d := shownDisk(t, disk); d.Status.State != model.DiskRetired {
		t.Errorf("%s is %s (%s)", disk, d.Status.State, d.Status.Reason)
	}
	must(t, time.Minute, "volume", "unserve", "away")
	back := filepath.Join(t.TempDir(), "back")
	uri := serve(t, "away")
	tool(t, "nbdcopy", uri, back)
	tool(t, "cmp", file, back)
}

// A disk that does not answer any more is put out once, and nobody notices but by one
// slow write; when it answers again its copy comes back.
func TestHungDiskIsPutOut(t *testing.T) {
	long(t)
	made(t, "hung") // it is open on n1
	defer must(t, time.Minute, "volume", "unserve", "hung")
	uri := serve(t, "hung")
	disk, inLab := copyOn(t, "hung", "n2")
	must(t, time.Minute, "lab", "disk", "hang", inLab, "--name", labName)
	in := false
	defer func() {
		if !in {
			must(t, time.Minute, "lab", "disk", "insert", inLab, "--name", labName)
		}
	}()
	file := filepath.Join(t.TempDir(), "new")
	randomFile(t, file, 128)
	began := time.Now()
	tool(t, "nbdcopy", "--flush", file, uri)
	// 4 s are promised for the one write that met the disk; the rest is the copying.
	if took := time.Since(began); took > 30*time.Second {
		t.Errorf("128 MiB took %s over a disk that hangs", took)
	}
	for _, c := range copiesOf(t, "hung") {
		if c.Node == "n2" && c.Disk == disk && c.InSync {
			t.Errorf("a disk that does not answer counts as in sync: %+v", c)
		}
	}
	must(t, time.Minute, "lab", "disk", "insert", inLab, "--name", labName)
	in = true
	whole(t)
	tool(t, "cmp", file, fetchedFrom(t, uri))
}

// fetchedFrom copies an export into a file.
func fetchedFrom(t *testing.T, uri string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "fetched")
	tool(t, "nbdcopy", uri, file)
	return file
}
