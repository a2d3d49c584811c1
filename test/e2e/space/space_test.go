// Package space runs what the pool does about lost disks and nodes and about
// space, each on a small lab of its own. It needs root and ROSEAU_E2E=1; `make
// e2e` sets it.
package space

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"roseau/internal/base/size"
)

// lab is one lab and the command line that talks to it.
type lab struct {
	t    *testing.T
	bin  string
	name string
}

func up(t *testing.T, args ...string) *lab {
	if os.Getenv("ROSEAU_E2E") == "" {
		t.Skip("needs root and a lab; `make e2e` runs it")
	}
	root, err := filepath.Abs(filepath.Join("..", "..", ".."))
	if err != nil {
		t.Fatal(err)
	}
	home := t.TempDir()
	t.Setenv("ROSEAU_LAB_DIR", filepath.Join(home, "labs"))
	t.Setenv("XDG_CONFIG_HOME", filepath.Join(home, "config"))
	t.Setenv("XDG_CACHE_HOME", filepath.Join(root, ".cache"))
	l := &lab{t: t, bin: filepath.Join(root, "bin", "roseau"), name: "e2e-space"}
	t.Setenv("ROSEAU_LAB", l.name)
	t.Cleanup(func() {
		if t.Failed() {
			out, _ := l.try(time.Minute, "events")
			keep(t, home, root, out)
		}
		if out, err := l.try(2*time.Minute, "lab", "down", "--name", l.name); err != nil {
			t.Errorf("lab down: %v\n%s", err, out)
		}
	})
	l.must(3*time.Minute, append([]string{"lab", "up", "--name", l.name}, args...)...)
	return l
}

// keep copies the nodes' logs and the events to .cache/e2e-logs for whoever looks into
// a failure.
func keep(t *testing.T, home, root, events string) {
	to := filepath.Join(root, ".cache", "e2e-logs", t.Name())
	os.RemoveAll(to)
	os.MkdirAll(to, 0o755)
	os.WriteFile(filepath.Join(to, "events"), []byte(events), 0o644)
	logs, _ := filepath.Glob(filepath.Join(home, "labs", "*", "nodes", "*", "log", "*"))
	for _, f := range logs {
		if b, err := os.ReadFile(f); err == nil {
			rel, _ := filepath.Rel(filepath.Join(home, "labs"), f)
			os.MkdirAll(filepath.Dir(filepath.Join(to, rel)), 0o755)
			os.WriteFile(filepath.Join(to, rel), b, 0o644)
		}
	}
	t.Logf("the last events (all, and the nodes' logs, are in %s):\n%s", to, events[max(0, len(events)-2000):])
}

func (l *lab) try(limit time.Duration, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	cmd := exec.CommandContext(ctx, l.bin, args...)
	cmd.WaitDelay = 5 * time.Second
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	err := cmd.Run()
	return out.String(), err
}

func (l *lab) must(limit time.Duration, args ...string) string {
	l.t.Helper()
	out, err := l.try(limit, args...)
	if err != nil {
		l.t.Fatalf("roseau %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return out
}

func (l *lab) json(v any, args ...string) {
	l.t.Helper()
	out := l.must(time.Minute, append(args, "-o", "json")...)
	if err := json.Unmarshal([]byte(out), v); err != nil {
		l.t.Fatalf("roseau %s: %v\n%s", strings.Join(args, " "), err, out)
	}
}

type volumeInfo struct {
	Status struct {
		Health string `json:"health"`
		Copies int    `json:"copies"`
		Writer string `json:"writer"`
	} `json:"status"`
	Copies []struct {
		Disk   string `json:"disk"`
		Node   string `json:"node"`
		InSync bool   `json:"in_sync"`
	} `json:"copies"`
}

func (l *lab) volume(name string) volumeInfo {
	l.t.Helper()
	var v volumeInfo
	l.json(&v, "volume", "show", name)
	return v
}

func (v volumeInfo) on(disk string) bool {
	for _, c := range v.Copies {
		if c.Disk == disk || c.Node == disk {
			return true
		}
	}
	return false
}

// wait polls until ok says so.
func (l *lab) wait(limit time.Duration, what string, ok func() bool) time.Duration {
	l.t.Helper()
	begin := time.Now()
	for time.Since(begin) < limit {
		if ok() {
			return time.Since(begin)
		}
		time.Sleep(500 * time.Millisecond)
	}
	l.t.Fatalf("after %s: not %s", limit, what)
	return 0
}

// serve opens a volume on a node; io runs qemu-io commands on it.
func (l *lab) serve(volume, node string) string {
	l.t.Helper()
	out := strings.Fields(l.must(time.Minute, "volume", "serve", volume, "--node", node))
	return out[len(out)-1]
}

func (l *lab) io(limit time.Duration, node, socket string, commands ...string) (string, error) {
	args := []string{"lab", "exec", node, "--", "qemu-io", "-f", "raw", "nbd+unix:///?socket=" + socket}
	for _, c := range commands {
		args = append(args, "-c", c)
	}
	return l.try(limit, args...)
}

func (l *lab) mustIO(node, socket string, commands ...string) {
	l.t.Helper()
	if out, err := l.io(2*time.Minute, node, socket, commands...); err != nil || strings.Contains(out, "failed") {
		l.t.Fatalf("qemu-io %v: %v\n%s", commands, err, out)
	}
}

// S14: the volume of a stopped VM gets its copies back without it, by a writer
// that lets go at once when the VM is started.
func TestStoppedMachinesAreRepaired(t *testing.T) {
	l := up(t, "--nodes", "3", "--disks", "2", "--disk-size", "2GiB")
	l.must(time.Minute, "volume", "create", "data", "--size", "1GiB")
	s := l.serve("data", "n1")
	l.mustIO("n1", s, "write -P 7 0 400M", "flush")
	l.must(time.Minute, "volume", "unserve", "data")
	l.must(time.Minute, "vm", "create", "idle", "--memory", "64MiB", "--accel", "tcg", "--disk", "volume=data")
	disk := ""
	for _, c := range l.volume("data").Copies {
		if c.Node == "n2" {
			disk = c.Disk
		}
	}
	l.must(time.Minute, "lab", "disk", "pull", "n2/"+strings.TrimPrefix(disk, "n2-"))
	l.wait(time.Minute, "opened by a maintenance writer", func() bool {
		v := l.volume("data")
		return strings.HasSuffix(v.Status.Writer, "maintenance") && !v.on(disk)
	})
	// It is started in the middle of it, and the rebuild goes on under it.
	begin := time.Now()
	l.must(time.Minute, "vm", "start", "idle")
	t.Logf("vm start during the repair: %s", time.Since(begin).Round(100*time.Millisecond))
	if d := time.Since(begin); d > 20*time.Second {
		t.Errorf("vm start waited %s for the repair", d)
	}
	took := l.wait(time.Minute, "three copies again", func() bool {
		v := l.volume("data")
		return v.Status.Health == "healthy" && v.Status.Copies == 3 && !v.on(disk)
	})
	t.Logf("three copies again after %s", took.Round(time.Second))
	if os.Getenv("ROSEAU_E2E_LONG") != "" {
		l.secondLoss(s)
	}
}

// secondLoss: a day later, as it were, the stopped VM loses the copy of another node,
// and when that is made good the last one that was ever written to: what is left was
// made by the repairs alone.
func (l *lab) secondLoss(s string) {
	l.must(time.Minute, "vm", "stop", "idle", "--force")
	pull := func(node string) (disk string) {
		for _, c := range l.volume("data").Copies {
			if c.Node == node {
				disk = c.Disk
			}
		}
		l.must(time.Minute, "lab", "disk", "pull", node+"/"+strings.TrimPrefix(disk, node+"-"))
		return disk
	}
	disk := pull("n3")
	took := l.wait(2*time.Minute, "three copies again after the second loss", func() bool {
		v := l.volume("data")
		return v.Status.Health == "healthy" && v.Status.Copies == 3 && !v.on(disk)
	})
	l.t.Logf("three copies again %s after the second loss", took.Round(time.Second))
	disk = pull("n1")
	l.wait(2*time.Minute, "without the copy that was written first", func() bool { return !l.volume("data").on(disk) })
	if again := l.serve("data", "n1"); again != s {
		l.t.Errorf("served at %s, was at %s", again, s)
	}
	l.mustIO("n1", s, "read -P 7 0 400M")
}

// One machine is a mirror of its own disks: a lost disk is rebuilt onto disks that
// hold other segments of the same volume, and the data is what it was.
func TestOneMachine(t *testing.T) {
	l := up(t, "--nodes", "1", "--disks", "3", "--disk-size", "4GiB")
	l.must(time.Minute, "volume", "create", "data", "--size", "3GiB")
	s := l.serve("data", "n1")
	l.mustIO("n1", s, "write -P 1 0 100M", "write -P 2 1G 100M", "write -P 3 2G 100M", "flush")
	l.must(time.Minute, "lab", "disk", "pull", "n1/d1")
	l.wait(time.Minute, "rebuilt without n1-d1", func() bool {
		v := l.volume("data")
		return v.Status.Health == "healthy" && v.Status.Copies == 2 && !v.on("n1-d1")
	})
	l.mustIO("n1", s, "read -P 1 0 100M", "read -P 2 1G 100M", "read -P 3 2G 100M")
}

// A disk that is added fills by itself, one copy at a time, under a volume in use;
// the old copy's space is given back.
func TestNewDiskFills(t *testing.T) {
	l := up(t, "--nodes", "1", "--disks", "3", "--disk-size", "4GiB")
	l.must(time.Minute, "pool", "delete", "pool1")
	l.must(time.Minute, "pool", "create", "p", "--copies", "2", "--domain", "disk", "--disk", "n1-d1,n1-d2")
	for _, v := range []string{"a", "b"} {
		l.must(time.Minute, "volume", "create", v, "--size", "1GiB", "--pool", "p")
	}
	s := l.serve("a", "n1")
	l.mustIO("n1", s, "write -P 5 0 200M", "flush")
	l.must(time.Minute, "volume", "unserve", "a")
	s = l.serve("b", "n1")
	l.mustIO("n1", s, "write -P 6 0 200M", "flush")
	l.must(time.Minute, "pool", "add", "p")
	var p poolInfo
	l.wait(90*time.Second, "balanced over three disks", func() bool {
		p = poolInfo{}
		l.json(&p, "pool", "show", "p")
		used := map[string]size.Bytes{}
		for _, m := range p.Members {
			used[m.Name] = m.Used
		}
		return p.Copies == "in sync, balanced" && used["n1-d3"] > 150*size.MiB && used["n1-d1"]+used["n1-d2"] < 700*size.MiB
	})
	for _, v := range []string{"a", "b"} {
		if h := l.volume(v); h.Status.Health != "healthy" || h.Status.Copies != 2 || len(h.Copies) != 2 {
			t.Errorf("volume %s: %+v", v, h)
		}
	}
	l.mustIO("n1", s, "read -P 6 0 200M")
	s = l.serve("a", "n1")
	l.mustIO("n1", s, "read -P 5 0 200M")
}

// Row 36: power lost by the nodes with copies under a guest on a fourth one.
func TestCopiesLosePower(t *testing.T) {
	if os.Getenv("ROSEAU_E2E_LONG") == "" {
		t.Skip("it takes long; `make e2e` runs it")
	}
	l := up(t, "--nodes", "4", "--disks", "1", "--disk-size", "4GiB")
	t.Log(l.must(6*time.Minute, "drill", "run", "--report", t.TempDir(), "copies-cut"))
}

type poolInfo struct {
	Percent int        `json:"percent"`
	Level   string     `json:"level"`
	Copies  string     `json:"copies"`
	RawUsed size.Bytes `json:"raw_used"`
	Members []struct {
		Name string     `json:"name"`
		Used size.Bytes `json:"used"`
	} `json:"members"`
}

// Row 21: a full pool makes writes wait, puts out no copy, and goes on when there
// is space; a discard gives some.
func TestFullPool(t *testing.T) {
	l := up(t, "--nodes", "1", "--disks", "3", "--disk-size", "1GiB")
	if out, err := l.try(time.Minute, "volume", "create", "big", "--size", "100GiB"); err == nil || !strings.Contains(out, "larger than pool") {
		t.Errorf("a volume larger than the pool: %v %s", err, out)
	}
	for _, v := range []string{"a", "b"} {
		l.must(time.Minute, "volume", "create", v, "--size", "560MiB")
	}
	a, b := l.serve("a", "n1"), l.serve("b", "n1")
	l.wait(30*time.Second, "limited", func() bool { return l.pool().Level == "ok" })
	l.mustIO("n1", a, "write -P 1 0 480M", "flush")
	done := make(chan error, 1)
	go func() {
		out, err := l.io(3*time.Minute, "n1", b, "write -P 2 0 480M", "flush", "read -P 2 0 480M")
		if err == nil && strings.Contains(out, "failed") {
			err = fmt.Errorf("qemu-io: %s", out)
		}
		done <- err
	}()
	l.wait(time.Minute, "critical", func() bool { return l.pool().Level == "critical" })
	select {
	case err := <-done:
		t.Fatalf("the write ended although there is no space: %v", err)
	case <-time.After(5 * time.Second):
	}
	for _, v := range []string{"a", "b"} {
		if h := l.volume(v); h.Status.Health != "healthy" {
			t.Errorf("volume %s is %s: a full disk is no lost copy", v, h.Status.Health)
		}
	}
	l.mustIO("n1", a, "discard 0 480M", "flush")
	select {
	case err := <-done:
		if err != nil {
			t.Errorf("the write that waited: %v", err)
		}
	case <-time.After(time.Minute):
		t.Error("the write still waits although there is space")
	}
	l.must(time.Minute, "volume", "unserve", "b")
	l.must(time.Minute, "volume", "delete", "b", "--confirm", "b")
	l.wait(time.Minute, "empty", func() bool { return l.pool().RawUsed < 64*size.MiB })
}

func (l *lab) pool() poolInfo {
	l.t.Helper()
	var p poolInfo
	l.json(&p, "pool", "show", "pool1")
	return p
}

// A dead node's copies are rebuilt on a new one, which takes its place; what lay
// on the old one is read from there.
func TestNodeReplace(t *testing.T) {
	l := up(t, "--nodes", "4", "--disks", "1", "--disk-size", "4GiB")
	l.must(time.Minute, "volume", "create", "data", "--size", "3GiB")
	s := l.serve("data", "n1")
	l.mustIO("n1", s, "write -P 1 0 100M", "write -P 2 1G 100M", "write -P 3 2G 100M", "flush")
	l.must(time.Minute, "volume", "unserve", "data")
	if out, err := l.try(time.Minute, "node", "replace", "n3", "n4"); err == nil || !strings.Contains(out, "alive") {
		t.Errorf("a living node was replaced: %s", out)
	}
	l.must(time.Minute, "lab", "node", "cut", "n3")
	l.wait(time.Minute, "n3 is gone", func() bool {
		out, err := l.try(time.Minute, "node", "replace", "n3", "n4", "--dry-run")
		return err == nil && strings.Contains(out, "remove n3")
	})
	begin := time.Now()
	l.must(3*time.Minute, "node", "replace", "n3", "n4")
	t.Logf("replaced in %s", time.Since(begin).Round(time.Second))
	if v := l.volume("data"); v.Status.Health != "healthy" || v.Status.Copies != 3 || v.on("n3") {
		t.Errorf("%+v", v)
	}
	if out := l.must(time.Minute, "node", "list"); strings.Contains(out, "n3") {
		t.Errorf("n3 is still there:\n%s", out)
	}
	s = l.serve("data", "n4")
	l.mustIO("n4", s, "read -P 1 0 100M", "read -P 2 1G 100M", "read -P 3 2G 100M")
}
