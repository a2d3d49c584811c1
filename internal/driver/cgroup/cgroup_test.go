package cgroup

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"roseau/internal/base/errs"
	"roseau/internal/base/ids"
	"roseau/internal/base/size"
)

var limits = Limits{Memory: 512 * size.MiB, CPUWeight: 300, Pids: 64}

// fakeV2 is a machine with version 2 at /sys/fs/cgroup, as systemd has it, and
// this process in group.
func fakeV2(t *testing.T, group, controllers string) Tree {
	t.Helper()
	tree := Tree{root: t.TempDir()}
	fill := func(dir string) error {
		for name, text := range map[string]string{"cgroup.procs": "", "cgroup.controllers": controllers, "cgroup.subtree_control": "",
			"cgroup.freeze": "0", "cgroup.kill": "", "cgroup.events": "populated 1\nfrozen 0\n",
			"memory.max": "max", "cpu.weight": "100", "pids.max": "max"} {
			if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
				return err
			}
		}
		return nil
	}
	tree.made = fill
	for _, p := range []string{"self", "4711"} {
		must(t, os.MkdirAll(tree.path("/proc/"+p), 0o755))
	}
	must(t, os.WriteFile(tree.path("/proc/self/mountinfo"), []byte(
		"30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate\n31 23 0:7 / /dev rw - devtmpfs udev rw\n"), 0o644))
	must(t, os.WriteFile(tree.path("/proc/self/cgroup"), []byte("0::"+group+"\n"), 0o644))
	must(t, os.MkdirAll(tree.path("/sys/fs/cgroup"+group), 0o755))
	must(t, fill(tree.path("/sys/fs/cgroup"+group)))
	return tree
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

const unit = "/system.slice/roseau-vm@0a.service"

func (t Tree) has(tb *testing.T, file, want string) {
	tb.Helper()
	if got := strings.Join(t.words(file), " "); got != want {
		tb.Errorf("%s is %q, want %q", file, got, want)
	}
}

func TestV2(t *testing.T) {
	tree := fakeV2(t, unit, "cpuset cpu io memory pids")
	g, err := tree.Make("0a", limits)
	must(t, err)
	at := "/sys/fs/cgroup" + unit
	tree.has(t, at+"/guard/cgroup.procs", strconv.Itoa(os.Getpid()))
	tree.has(t, at+"/cgroup.subtree_control", "+pids") // the file keeps the last word only
	tree.has(t, at+"/qemu/memory.max", "536870912")
	tree.has(t, at+"/qemu/cpu.weight", "300")
	tree.has(t, at+"/guard/cpu.weight", "300")
	tree.has(t, at+"/guard/memory.max", "max")
	tree.has(t, at+"/qemu/pids.max", "64")
	must(t, g.Add(4711))
	tree.has(t, at+"/qemu/cgroup.procs", "4711")
	if got := g.Controllers(); g.Version() != V2 || !slices.Equal(got, []string{"cpu", "freezer", "memory", "pids"}) {
		t.Errorf("%s %v", g.Version(), got)
	}
	must(t, g.Freeze())
	tree.has(t, at+"/qemu/cgroup.freeze", "1")
	if g.Frozen() {
		t.Error("frozen before the kernel says so")
	}
	must(t, os.WriteFile(tree.path(at+"/qemu/cgroup.events"), []byte("populated 1\nfrozen 1\n"), 0o644))
	if !g.Frozen() {
		t.Error("not frozen")
	}
	must(t, g.Thaw())
	tree.has(t, at+"/qemu/cgroup.freeze", "0")
	must(t, g.Kill())
	tree.has(t, at+"/qemu/cgroup.kill", "1")

	// The supervisor's hook runs in a group of its own and finds the QEMU's.
	must(t, os.WriteFile(tree.path("/proc/4711/cgroup"), []byte("0::"+unit+"/qemu\n"), 0o644))
	must(t, os.WriteFile(tree.path("/proc/self/cgroup"), []byte("0::"+unit+"/.control\n"), 0o644))
	h, err := tree.Of(4711, "0a")
	must(t, err)
	must(t, os.WriteFile(tree.path(at+"/cgroup.subtree_control"), []byte("pids"), 0o644))
	must(t, h.Loosen())
	tree.has(t, at+"/cgroup.subtree_control", "-pids")

	// A guard that moved aside finds the same group again.
	must(t, os.WriteFile(tree.path("/proc/self/cgroup"), []byte("0::"+unit+"/guard\n"), 0o644))
	again, err := tree.Make("0a", limits)
	must(t, err)
	if again.dirs[""] != g.dirs[""] {
		t.Errorf("%s, then %s", g.dirs[""], again.dirs[""])
	}
}

func TestV2Refusals(t *testing.T) {
	for name, tree := range map[string]Tree{
		"a session's group":     fakeV2(t, "/user.slice/session-3.scope", "cpu memory pids"),
		"no memory controller":  fakeV2(t, unit, "hugetlb"),
		"controllers taken off": fakeV2(t, "/", "cpu memory"),
	} {
		if g, err := tree.Make("0a", limits); !errors.Is(err, errs.Unavailable) {
			t.Errorf("%s: %+v, %v", name, g, err)
		}
	}
}

func TestParse(t *testing.T) {
	m := parseMemberships("9:name=systemd:/\n4:cpu,cpuacct:/a/b\n0::/c:d\nnonsense\n")
	if m["cpu"] != "/a/b" || m["cpuacct"] != "/a/b" || m[""] != "/c:d" {
		t.Errorf("%v", m)
	}
	h := parseMounts("36 35 98:0 /docker/7 /sys/fs/cgroup/memory rw master:1 - cgroup cgroup rw,memory\n1 2 0:1 / / rw - ext4 /dev/sda rw\n")
	if len(h) != 1 || h[0].root != "/docker/7" || !slices.Contains(h[0].controllers, "memory") || h[0].v2 {
		t.Errorf("%+v", h)
	}
}

func FuzzParse(f *testing.F) {
	f.Add("36 35 98:0 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n")
	f.Add("0::/a\n")
	f.Fuzz(func(_ *testing.T, s string) {
		parseMounts(s)
		parseMemberships(s)
	})
}

// TestKernel uses what the machine has: limits, a freeze that stops, a thaw that
// goes on, a kill that ends a frozen process, a removal.
func TestKernel(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
	vm := ids.New().String()
	g, err := Make(vm, limits)
	if errors.Is(err, errs.Unavailable) {
		t.Skip(err)
	}
	must(t, err)
	if g.Version() == V2 {
		t.Skip("version 2 needs the guard's own unit")
	}
	defer func() {
		must(t, g.Remove())
		if left, _ := filepath.Glob("/sys/fs/cgroup/*/*" + vm); len(left) > 0 {
			t.Errorf("left: %v", left)
		}
	}()
	cmd := exec.Command("sh", "-c", "while :; do :; done")
	must(t, cmd.Start())
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	must(t, g.Add(cmd.Process.Pid))
	t.Log(g.Controllers())
	h, err := Of(cmd.Process.Pid, vm)
	must(t, err)
	if len(h.dirs) != len(g.dirs) {
		t.Errorf("found %v, made %v", h.dirs, g.dirs)
	}
	if dir, ok := g.dirs["memory"]; ok {
		Tree{}.has(t, filepath.Join(dir, "memory.limit_in_bytes"), "536870912")
	}
	if !g.CanFreeze() {
		t.Skip("no freezer")
	}
	must(t, h.Freeze())
	until(t, "frozen", g.Frozen)
	before := cpuTicks(t, cmd.Process.Pid)
	time.Sleep(100 * time.Millisecond) // the absence of progress has no event
	if now := cpuTicks(t, cmd.Process.Pid); now != before {
		t.Errorf("a frozen process used %d ticks", now-before)
	}
	must(t, g.Thaw())
	until(t, "progress", func() bool { return cpuTicks(t, cmd.Process.Pid) > before })
	must(t, g.Freeze())
	until(t, "frozen", g.Frozen)
	must(t, g.Kill())
	select {
	case <-ended:
	case <-time.After(10 * time.Second):
		t.Fatal("a frozen process survives its kill")
	}
}

func until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("never " + what)
		}
	}
}

func cpuTicks(t *testing.T, pid int) int {
	t.Helper()
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	must(t, err)
	f := strings.Fields(string(b[strings.LastIndexByte(string(b), ')')+1:]))
	n, err := strconv.Atoi(f[11])
	must(t, err)
	return n
}

// TestKernelV2 freezes, thaws and kills in a version 2 group, where the machine
// has one mounted, whatever its controllers.
func TestKernelV2(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
	at := ""
	for _, h := range parseMounts(string(read(t, "/proc/self/mountinfo"))) {
		if h.v2 && h.root == "/" {
			at = h.at
		}
	}
	dir := filepath.Join(at, unitPrefix+ids.New().String())
	if at == "" || os.Mkdir(dir, 0o755) != nil {
		t.Skip("no version 2 mounted for writing")
	}
	defer func() { must(t, RemoveAll(dir)) }()
	g := &Group{v2: true, dirs: map[string]string{"": filepath.Join(dir, qemuGroup)}}
	must(t, Tree{}.mkdir(g.dirs[""]))
	cmd := exec.Command("sleep", "100")
	must(t, cmd.Start())
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	must(t, g.Add(cmd.Process.Pid))
	found, err := Of(cmd.Process.Pid, "any")
	must(t, err)
	if !found.v2 || found.dirs[""] != g.dirs[""] {
		t.Errorf("found %v", found.dirs)
	}
	must(t, g.Freeze())
	until(t, "frozen", g.Frozen)
	must(t, g.Thaw())
	until(t, "thawed", func() bool { return !g.Frozen() })
	must(t, g.Freeze())
	must(t, g.Kill())
	select {
	case <-ended:
	case <-time.After(10 * time.Second):
		t.Fatal("it survives its kill")
	}
	must(t, g.Loosen())
}

func read(t *testing.T, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	must(t, err)
	return b
}
