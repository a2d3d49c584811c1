package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"roseau/internal/base/ids"
	"roseau/internal/drill/probe"
	"roseau/internal/lab/labclient"
	"roseau/internal/svc/volume"
	"roseau/internal/unit"
)

// labNodes is what the lab says of its nodes.
func labNodes(t *testing.T) []labclient.Node {
	t.Helper()
	var st labclient.Status
	decode(t, must(t, time.Minute, "lab", "status", "--name", labName, "-o", "json"), &st)
	return st.Nodes
}

// labNode is what it says of one of them.
func labNode(t *testing.T, name string) labclient.Node {
	t.Helper()
	for _, n := range labNodes(t) {
		if n.Name == name {
			return n
		}
	}
	t.Fatalf("no node %s", name)
	return labclient.Node{}
}

// unitOn is the state of a unit on a node; ok is false if there is none.
func unitOn(t *testing.T, node string, name unit.Name) (u unit.Status, ok bool) {
	t.Helper()
	for _, u := range labNode(t, node).Units {
		if u.Name == name {
			return u, true
		}
	}
	return u, false
}

// guardOf finds the guard of a running VM.
func guardOf(t *testing.T, vm string) (node string, id ids.ID) {
	t.Helper()
	v := waitVM(t, vm, "running", running)
	for id, name := range labNode(t, v.Status.Node).GuardNames {
		if name == vm {
			return v.Status.Node, id
		}
	}
	t.Fatalf("no guard of vm %s on %s", vm, v.Status.Node)
	return "", id
}

// another returns a node other than the given one.
func another(t *testing.T, not string) string {
	t.Helper()
	for _, n := range labNodes(t) {
		if n.Name != not {
			return n.Name
		}
	}
	t.Fatal("the lab has one node")
	return ""
}

// inNode runs a command on a node.
func inNode(t *testing.T, node string, argv ...string) string {
	t.Helper()
	return must(t, time.Minute, append([]string{"lab", "exec", "--name", labName, node, "--"}, argv...)...)
}

// startedAgain waits until a unit's supervisor has started it again since before.
func startedAgain(t *testing.T, node string, before unit.Status) {
	t.Helper()
	eventually(t, time.Minute, fmt.Sprintf("%s on %s to be started again", before.Name, node), func() bool {
		u, ok := unitOn(t, node, before.Name)
		return ok && u.Restarts > before.Restarts && u.State == unit.Running && u.PID != before.PID
	})
}

// processes are the pids, as their node counts them, of what runs with arguments that
// match.
func processes(match func(argv []string) bool) (pids []int) {
	all, _ := filepath.Glob("/proc/[0-9]*") // the pattern is right
	for _, p := range all {
		b, err := os.ReadFile(filepath.Join(p, "cmdline"))
		if err != nil || len(b) == 0 || !match(strings.Split(string(b), "\x00")) {
			continue
		}
		status, _ := os.ReadFile(filepath.Join(p, "status"))
		_, text, _ := strings.Cut(string(status), "NSpid:")
		line, _, _ := strings.Cut(text, "\n")
		if f := strings.Fields(line); len(f) > 0 {
			if pid, err := strconv.Atoi(f[len(f)-1]); err == nil {
				pids = append(pids, pid)
			}
		}
	}
	return pids
}

func qemuOf(vm ids.ID) []int {
	return processes(func(argv []string) bool {
		return strings.Contains(argv[0], "qemu-system") && strings.Contains(strings.Join(argv, " "), vm.String())
	})
}

func guardsOf(vm ids.ID) []int {
	return processes(func(argv []string) bool {
		return len(argv) > 2 && filepath.Base(argv[0]) == "roseau" && argv[1] == "vmguard" && argv[2] == vm.String()
	})
}

// sameGuest waits for the guest and demands that it is the one of before, unharmed.
func (g *guest) sameGuest(t *testing.T, before probe.Status) {
	t.Helper()
	st := g.wait(t, "answering", func(probe.Status) bool { return true })
	if st.Boot != before.Boot || st.Uptime <= before.Uptime {
		t.Errorf("guest %s rebooted: boot %s, was %s", g.name, st.Boot, before.Boot)
	}
	if st.IOErrors > 0 || st.MemoryBad > 0 {
		t.Errorf("guest %s: %d I/O errors (%s), %d words of memory wrong", g.name, st.IOErrors, st.LastError, st.MemoryBad)
	}
}

// guestOf starts a guest of whose volumes every copy is in sync.
func guestOf(t *testing.T, name string, number byte) (g *guest, before probe.Status, home string, vm ids.ID) {
	t.Helper()
	g = newGuest(t, name, number)
	must(t, time.Minute, "vm", "start", name)
	before = g.up(t, "")
	home, vm = guardOf(t, name)
	whole(t)
	return g, before, home, vm
}

// endures does harm to a unit and demands that its supervisor starts it again, and
// that the guest, which writes meanwhile, notices a pause at most.
func (g *guest) endures(t *testing.T, before probe.Status, node string, name unit.Name, what string, harm func(pid int)) {
	t.Helper()
	u, ok := unitOn(t, node, name)
	if !ok || u.PID == 0 {
		t.Fatalf("%s on %s: %+v", name, node, u)
	}
	harm(u.PID)
	began := time.Now()
	g.fill(t)
	startedAgain(t, node, u)
	whole(t)
	t.Logf("%s on %s %s: started again, every volume whole after %s", name, node, what, time.Since(began).Round(100*time.Millisecond))
	g.filled(t)
	g.sameGuest(t, before)
}

// Row 29: a storage process, the guard of a VM, and the writer of a volume without one
// may open no further descriptor when connections have to be made anew. Each ends and is
// started again, and the guest notices a pause at most.
func TestOutOfDescriptors(t *testing.T) {
	long(t)
	heals(t)
	g, before, home, vm := guestOf(t, "fds", 31)
	other := another(t, home)
	without := func(node string, name unit.Name) {
		t.Helper()
		g.endures(t, before, node, name, "without descriptors", func(pid int) {
			inNode(t, node, "prlimit", "--pid", strconv.Itoa(pid), "--nofile=4:4") // what it has open it keeps
			must(t, time.Minute, "lab", "service", "reset", other, "storage", "--name", labName)
		})
	}
	without(other, unit.Storage)
	without(home, unit.VM(vm))
	// Not before: a copy that is put out twice in a minute waits for a minute.
	must(t, time.Minute, "volume", "create", "fds-served", "--size", "64MiB")
	defer must(t, time.Minute, "volume", "delete", "fds-served", "--confirm", "fds-served")
	must(t, time.Minute, "volume", "serve", "fds-served", "--node", home)
	defer must(t, time.Minute, "volume", "unserve", "fds-served")
	var served volume.Info
	decode(t, must(t, time.Minute, "volume", "show", "fds-served", "-o", "json"), &served)
	whole(t)
	without(home, unit.Volume(served.ID))
}

// memoryGroup makes a control group on a node that may use so many bytes; false: this
// machine has no controller for that. It is removed with the test.
func memoryGroup(t *testing.T, node string, limit int) (procs string, ok bool) {
	t.Helper()
	const name = "roseau-lab-" + labName + "-memory"
	dir, file := "/sys/fs/cgroup/memory", "memory.limit_in_bytes"
	if _, err := os.Stat(filepath.Join(dir, file)); err != nil {
		dir, file = "/sys/fs/cgroup", "memory.max"
		if b, err := os.ReadFile(filepath.Join(dir, "cgroup.subtree_control")); err != nil || !strings.Contains(string(b), "memory") {
			return "", false
		}
	}
	dir = filepath.Join(dir, name)
	inNode(t, node, "mkdir", dir)
	t.Cleanup(func() { inNode(t, node, "rmdir", dir) })
	inNode(t, node, "sh", "-c", fmt.Sprintf("echo %d > %s/%s", limit, dir, file))
	return filepath.Join(dir, "cgroup.procs"), true
}

// Row 29: the kernel kills a storage process for memory.
func TestOutOfMemory(t *testing.T) {
	long(t)
	heals(t)
	g, before, home, _ := guestOf(t, "oom", 32)
	other := another(t, home)
	procs, ok := memoryGroup(t, other, 2<<20)
	if !ok {
		t.Skip("no memory controller")
	}
	g.endures(t, before, other, unit.Storage, "killed for memory", func(pid int) {
		inNode(t, other, "sh", "-c", fmt.Sprintf("echo %d > %s", pid, procs))
	})
	if now, _ := unitOn(t, other, unit.Storage); !strings.Contains(now.LastExit, "KILL") {
		t.Errorf("it ended by %q", now.LastExit)
	}
}

// Row 51: a guard that is stopped is taken for dead, a second one is started, and the
// node's daemon dies meanwhile. One guard is left, the supervisor's; QEMU follows.
func TestSecondGuardOfASlowOne(t *testing.T) {
	long(t)
	heals(t)
	g, before, home, vm := guestOf(t, "slow", 33)
	g.fill(t)
	whole(t)
	run := showVM(t, "slow").Status.Run
	qemu := qemuOf(vm)
	if len(qemu) != 1 {
		t.Fatalf("QEMU of the VM: processes %v", qemu)
	}
	u, _ := unitOn(t, home, unit.VM(vm))
	began := time.Now()
	inNode(t, home, "kill", "-STOP", strconv.Itoa(u.PID))
	must(t, time.Minute, "lab", "service", "kill", home, "node", "--name", labName)
	second := start(time.Minute, "lab", "exec", "--name", labName, home, "--", "roseau", "vmguard", vm.String())
	startedAgain(t, home, u)
	<-second.done // the supervisor's next guard has killed it, as it killed the first
	g.sameGuest(t, before)
	t.Logf("the guest answers %s after its guard was stopped; the second guard: %v", time.Since(began).Round(time.Millisecond), second.err)
	if second.err == nil || !strings.Contains(second.out, "killing the guard that holds the lock") {
		t.Errorf("the second guard has not killed the first, or was not killed: %v\n%s", second.err, second.out)
	}
	eventually(t, time.Minute, "one guard to be left, of the supervisor", func() bool {
		now, _ := unitOn(t, home, unit.VM(vm))
		left := guardsOf(vm)
		return now.State == unit.Running && len(left) == 1 && left[0] == now.PID
	})
	if now := qemuOf(vm); !slices.Equal(now, qemu) {
		t.Errorf("QEMU is process %v, was %v", now, qemu)
	}
	if now := waitVM(t, "slow", "running", running); now.Status.Run != run || now.Status.Node != home {
		t.Errorf("run %s on %s, was %s on %s", now.Status.Run, now.Status.Node, run, home)
	}
	nodesReady(t)
	g.filled(t)
	g.sameGuest(t, before)
}
