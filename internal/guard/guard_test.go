package guard

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	_ "embed"

	"golang.org/x/sys/unix"

	"roseau/internal/base/clock"
	"roseau/internal/base/ids"
	"roseau/internal/base/size"
	"roseau/internal/driver/cgroup"
	"roseau/internal/driver/guardctl"
	"roseau/internal/driver/qemu"
	"roseau/internal/model"
	"roseau/internal/pki"
	"roseau/internal/unit"
)

//go:embed testdata/counter.bin
var counterGuest []byte

// A guard is a process of its own in these tests: the test binary again, with
// ROSEAU_ROOT naming its node.
func TestMain(m *testing.M) {
	if len(os.Args) == 4 && os.Args[1] == "vmguard" {
		if err := testGuard(os.Args[2], os.Args[3]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func testGuard(vmText, world string) error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	vm := ids.MustParse(vmText)
	log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug}))
	lock, err := takeLock(ctx, vm, log)
	if err != nil {
		return err
	}
	defer lock.Close()
	cfg, err := guardctl.ReadConfig(vm)
	if err != nil {
		return err
	}
	id, err := pki.Load(os.Getenv("ROSEAU_ROOT") + "/var/lib/roseau/pki")
	if err != nil {
		return err
	}
	return run(ctx, cfg, deps{open: openFake(world), identity: id, clock: clock.System{}, notify: &unit.Notifier{}, log: log})
}

// world is a few nodes in one directory.
type world struct {
	t    *testing.T
	dir  string
	ca   *pki.CA
	vm   ids.ID
	disk ids.ID
}

func newWorld(t *testing.T) *world {
	t.Helper()
	if testing.Short() {
		t.Skip("runs QEMU")
	}
	if _, err := exec.LookPath(qemu.Program); err != nil {
		t.Skip("no " + qemu.Program)
	}
	dir, err := os.MkdirTemp("", "rg") // short: unix sockets have 108 bytes
	if err != nil {
		t.Fatal(err)
	}
	w := &world{t: t, dir: dir, vm: ids.New(), disk: ids.New()}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if err := qemu.KillAll(ctx, qemu.Find(w.vm.String())); err != nil {
			t.Error(err)
		}
		for _, d := range w.groups() { // of guards that were killed
			if err := cgroup.RemoveAll(d); err != nil {
				t.Error(err)
			}
		}
		os.RemoveAll(dir)
	})
	if err := os.Chmod(dir, 0o711); err != nil {
		t.Fatal(err)
	}
	if w.ca, err = pki.NewCA(ids.New(), time.Now()); err != nil {
		t.Fatal(err)
	}
	w.write("world/disk.raw", counterGuest)
	if err := os.Truncate(filepath.Join(dir, "world/disk.raw"), 16<<20); err != nil {
		t.Fatal(err)
	}
	return w
}

func (w *world) write(name string, b []byte) {
	w.t.Helper()
	path := filepath.Join(w.dir, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o711); err != nil {
		w.t.Fatal(err)
	}
	if err := os.WriteFile(path, b, 0o600); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) fault(name string, on bool) {
	w.t.Helper()
	if on {
		w.write("world/"+name, nil)
	} else if err := os.Remove(filepath.Join(w.dir, "world", name)); err != nil {
		w.t.Fatal(err)
	}
}

// onDisk is the counter that the guest wrote last.
func (w *world) onDisk() uint32 {
	w.t.Helper()
	f, err := os.Open(filepath.Join(w.dir, "world/disk.raw"))
	if err != nil {
		w.t.Fatal(err)
	}
	defer f.Close()
	b := make([]byte, 4)
	if _, err := f.ReadAt(b, 4096); err != nil {
		w.t.Fatal(err)
	}
	return binary.LittleEndian.Uint32(b)
}

// node is one node of a world, with at most one guard.
type node struct {
	w    *world
	name string
	id   ids.ID
	cmd  *exec.Cmd
	done chan struct{}
	ctl  *guardctl.Client
	net  *netSpace // nil: that of the test
}

// address is where the node's guard listens.
func (n *node) address() string {
	if n.net != nil {
		return n.net.address
	}
	return "127.0.0.1"
}

func (w *world) node(name string) *node {
	w.t.Helper()
	n := &node{w: w, name: name, id: ids.New()}
	if err := os.Mkdir(filepath.Join(w.dir, name), 0o711); err != nil {
		w.t.Fatal(err)
	}
	key, csr, err := pki.NewRequest(n.id.String())
	if err != nil {
		w.t.Fatal(err)
	}
	cert, err := w.ca.SignNode(csr, n.id, []net.IP{net.IPv4(127, 0, 0, 1)}, time.Now())
	if err != nil {
		w.t.Fatal(err)
	}
	if err := (pki.Files{CA: w.ca.CertPEM(), Cert: cert, Key: key}).Write(filepath.Join(w.dir, name, "var/lib/roseau/pki")); err != nil {
		w.t.Fatal(err)
	}
	n.ctl = guardctl.DialSocket(w.vm, filepath.Join(n.vmDir(), "control.sock"))
	w.t.Cleanup(func() {
		n.kill()
		if w.t.Failed() {
			for _, f := range []string{"guard.log", "qemu.log"} {
				b, _ := os.ReadFile(filepath.Join(n.vmDir(), f))
				w.t.Logf("%s of %s:\n%s", f, n.name, tailLines(string(b), 60))
			}
		}
	})
	return n
}

func tailLines(s string, n int) string {
	l := strings.Split(s, "\n")
	return strings.Join(l[max(0, len(l)-n):], "\n")
}

func (n *node) vmDir() string {
	return filepath.Join(n.w.dir, n.name, "run/roseau/vm", n.w.vm.String())
}

func (n *node) config() guardctl.Config {
	return guardctl.Config{VM: n.w.vm, Name: "count", Cluster: ids.New(), Node: n.id, NodeName: n.name, Attempt: 1,
		Intent: guardctl.IntentStart, CPUs: 1, Memory: 32 * size.MiB, Accel: "tcg",
		Disks: []guardctl.Disk{{Volume: n.w.disk, Name: "count-0", Size: 16 * size.MiB}},
		Nodes: []guardctl.Peer{{ID: n.id, Name: n.name, Addresses: map[model.NetworkRole][]string{model.RoleStorage: {"127.0.0.1"}}}}}
}

func (n *node) start(cfg guardctl.Config) {
	n.w.t.Helper()
	if err := guardctl.WriteFileJSON(filepath.Join(n.vmDir(), "config.json"), cfg); err != nil {
		n.w.t.Fatal(err)
	}
	n.startAgain()
}

func (n *node) startAgain() {
	n.w.t.Helper()
	log, err := os.OpenFile(filepath.Join(n.vmDir(), "guard.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		n.w.t.Fatal(err)
	}
	defer log.Close()
	n.cmd = exec.Command(os.Args[0], "vmguard", n.w.vm.String(), filepath.Join(n.w.dir, "world"))
	n.cmd.Env = append(os.Environ(), "ROSEAU_ROOT="+filepath.Join(n.w.dir, n.name))
	n.cmd.Stdout, n.cmd.Stderr = log, log
	if err := n.net.within(n.cmd.Start); err != nil {
		n.w.t.Fatal(err)
	}
	n.done = make(chan struct{})
	go func(cmd *exec.Cmd, done chan struct{}) { _ = cmd.Wait(); close(done) }(n.cmd, n.done)
}

// kill is kill -9 of the guard alone.
func (n *node) kill() {
	if n.cmd != nil {
		_ = n.cmd.Process.Kill()
		<-n.done
		n.cmd = nil
	}
}

// until waits for a status.
func (n *node) until(what string, ok func(guardctl.Status) bool) guardctl.Status {
	n.w.t.Helper()
	ctx, cancel := context.WithTimeout(n.w.t.Context(), 25*time.Second)
	defer cancel()
	for {
		s, err := n.ctl.Status(ctx)
		if err == nil && ok(s) {
			return s
		}
		select {
		case <-ctx.Done():
			b, _ := json.MarshalIndent(s, "", " ")
			n.w.t.Fatalf("%s: %s: status %s, %v", n.name, what, b, err)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

func (n *node) running() guardctl.Status {
	n.w.t.Helper()
	return n.until("running", func(s guardctl.Status) bool { return s.State == model.VMRunning })
}

// counts waits until the guest has counted on past from by more, without a
// reboot, and returns the new value.
func (w *world) counts(from uint32, more uint32) uint32 {
	w.t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for {
		now := w.onDisk()
		if now < from {
			w.t.Fatalf("the guest counts %d after %d: it was rebooted", now, from)
		}
		if now >= from+more {
			return now
		}
		if time.Now().After(deadline) {
			w.t.Fatalf("the guest is stuck at %d, want %d", now, from+more)
		}
		time.Sleep(20 * time.Millisecond) // polls a file
	}
}

// still checks that the guest does not count for a while.
func (w *world) still(d time.Duration) uint32 {
	w.t.Helper()
	before := w.onDisk()
	time.Sleep(d) // the absence of something has no event
	if now := w.onDisk(); now != before {
		w.t.Fatalf("the guest counted from %d to %d while paused", before, now)
	}
	return before
}

// confined checks that QEMU has a group with a limit, and its guard is not in it.
func (w *world) confined(s guardctl.Status, n *node) {
	w.t.Helper()
	if s.Confinement != "cgroup v1: cpu freezer memory pids" {
		w.t.Errorf("confinement %q", s.Confinement)
	}
	group, err := cgroup.Of(s.QEMUPID, w.vm.String())
	if err != nil {
		w.t.Fatal(err)
	}
	if !group.CanFreeze() {
		w.t.Error("no freezer")
	}
	if _, err := cgroup.Of(n.cmd.Process.Pid, w.vm.String()); err == nil {
		w.t.Error("the guard is in the group of its QEMU")
	}
	limited := false
	for _, g := range w.groups() {
		b, err := os.ReadFile(filepath.Join(g, "memory.limit_in_bytes"))
		limited = limited || err == nil && strings.TrimSpace(string(b)) == strconv.Itoa((32+2+384+32+1)<<20)
	}
	if !limited {
		w.t.Errorf("no memory limit in %v", w.groups())
	}
}

// groups lists the control groups of the VM.
func (w *world) groups() (dirs []string) {
	_ = filepath.WalkDir("/sys/fs/cgroup", func(p string, d os.DirEntry, err error) error {
		if err == nil && d.IsDir() && strings.Contains(p, w.vm.String()) {
			dirs = append(dirs, p)
		}
		return nil // groups of others come and go
	})
	return dirs
}

func TestBootStopConsole(t *testing.T) {
	w := newWorld(t)
	a := w.node("a")
	a.start(a.config())
	s := a.running()
	if s.Run.IsZero() || s.QEMUPID == 0 || s.Accel != "tcg" || !s.PortOpen || len(s.Volumes) != 1 || s.Volumes[0].Name != "count-0" {
		t.Errorf("status %+v", s)
	}
	if _, err := os.Stat("/sys/fs/cgroup/memory/memory.limit_in_bytes"); err == nil && isRoot() {
		w.confined(s, a)
	}
	n := w.counts(0, 5)
	con, err := a.ctl.Console(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	want := fmt.Sprintf("%08x\n", n+10)
	var seen strings.Builder
	buf := make([]byte, 512)
	for !strings.Contains(seen.String(), want) {
		k, err := con.Read(buf)
		if err != nil {
			t.Fatalf("%v after %q", err, seen.String())
		}
		seen.Write(buf[:k])
	}
	con.Close()
	if err := a.ctl.Reset(t.Context()); err != nil {
		t.Fatal(err)
	}
	deadline := time.Now().Add(10 * time.Second)
	for w.onDisk() > n && time.Now().Before(deadline) {
		time.Sleep(20 * time.Millisecond) // polls a file
	}
	w.counts(0, 3)
	if err := a.ctl.Stop(t.Context(), guardctl.StopRequest{Force: true}); err != nil {
		t.Fatal(err)
	}
	a.until("stopped", func(s guardctl.Status) bool { return s.Phase == guardctl.PhaseStopped && s.QEMUPID == 0 })
	w.still(300 * time.Millisecond)
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(20 * time.Millisecond) { // polls files
		left := w.groups()
		if len(left) == 0 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("groups of a stopped VM: %v", left)
		}
	}
	// A guard that is started again under the same attempt stays where it was.
	a.kill()
	a.startAgain()
	a.until("still stopped", func(s guardctl.Status) bool { return s.Phase == guardctl.PhaseStopped })
}

// kill -9 of the guard: its supervisor stops QEMU, the successor adopts it, and
// the guest goes on. Then the same while the old guard still lives and hangs.
func TestAdopt(t *testing.T) {
	w := newWorld(t)
	a := w.node("a")
	a.start(a.config())
	before := a.running()
	n := w.counts(0, 3)
	a.kill()
	p, err := qemu.Attach(before.QEMUPID, startOf(t, before.QEMUPID))
	if err != nil {
		t.Fatal(err)
	}
	p.Signal(unix.SIGSTOP) // the supervisor's hook
	began := time.Now()
	a.startAgain()
	after := a.running()
	t.Logf("adopted after %v", time.Since(began))
	if after.Run != before.Run || after.QEMUPID != before.QEMUPID || after.Adoptions != 1 || after.Restarts != 0 {
		t.Errorf("adopted %+v after %+v", after, before)
	}
	n = w.counts(n, 10)
	t.Logf("counting again after %v", time.Since(began))

	hung := a.cmd.Process
	if err := hung.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	hungDone := a.done
	a.startAgain() // kills it by the lock
	<-hungDone
	if s := a.until("adopted again", func(s guardctl.Status) bool { return s.Adoptions == 2 && s.State == model.VMRunning }); s.QEMUPID != before.QEMUPID {
		t.Errorf("adopted %+v", s)
	}
	w.counts(n, 10)
}

func startOf(t *testing.T, pid int) uint64 {
	t.Helper()
	s, err := qemu.StartTime(pid)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// A QEMU whose run another run replaced is killed at adoption, never resumed.
func TestAdoptForeignRun(t *testing.T) {
	w := newWorld(t)
	a := w.node("a")
	a.start(a.config())
	before := a.running()
	w.counts(0, 3)
	a.kill()
	pid := before.QEMUPID
	if err := unix.Kill(pid, unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	w.write("world/own.json", []byte(fmt.Sprintf(`{"epoch": 9, "node": %q, "run": %q, "nonce": %q}`, ids.New(), ids.New(), ids.New())))
	a.startAgain()
	a.until("lost", func(s guardctl.Status) bool { return s.Phase == guardctl.PhaseLost && s.QEMUPID == 0 })
	if len(qemu.Find(w.vm.String())) != 0 {
		t.Error("the old QEMU lives")
	}
}

// The lease lapses: paused, ports shut; it comes back: the guest goes on, unless
// its user paused it.
func TestLease(t *testing.T) {
	w := newWorld(t)
	a := w.node("a")
	a.start(a.config())
	a.running()
	n := w.counts(0, 3)
	w.fault(faultLease, true)
	s := a.until("paused", func(s guardctl.Status) bool { return s.State == model.VMPausedLease })
	if s.PortOpen {
		t.Error("the port is open without a lease")
	}
	w.still(500 * time.Millisecond)
	w.fault(faultLease, false)
	a.running()
	n = w.counts(n, 5)

	if err := a.ctl.Pause(t.Context()); err != nil {
		t.Fatal(err)
	}
	a.until("paused by its user", func(s guardctl.Status) bool { return s.State == model.VMPaused })
	w.fault(faultLease, true)
	a.until("without a lease", func(s guardctl.Status) bool { return len(s.Pauses) == 2 })
	w.fault(faultLease, false)
	a.until("lease back", func(s guardctl.Status) bool { return len(s.Pauses) == 1 && s.Pauses[0] == "user" })
	w.still(500 * time.Millisecond)
	if err := a.ctl.Resume(t.Context()); err != nil {
		t.Fatal(err)
	}
	a.running()
	w.counts(n, 5)
}

// QEMU's death: the VM starts again from power-on with a new run.
func TestQEMUDies(t *testing.T) {
	w := newWorld(t)
	a := w.node("a")
	a.start(a.config())
	before := a.running()
	w.counts(0, 20)
	if err := unix.Kill(before.QEMUPID, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	s := a.until("restarted", func(s guardctl.Status) bool { return s.State == model.VMRunning && s.Restarts == 1 })
	if s.Run == before.Run || s.QEMUPID == before.QEMUPID {
		t.Errorf("restarted as %+v after %+v", s, before)
	}
}

func (n *node) incoming(from *node, s guardctl.Status) guardctl.Config {
	c := n.config()
	c.Intent, c.Source, c.Run, c.Attempt = guardctl.IntentIncoming, from.id, s.Run, 2
	c.MigrationPort = freePort(n.w.t)
	return c
}

func freePort(t *testing.T) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	_, port, _ := net.SplitHostPort(l.Addr().String())
	p, err := strconv.Atoi(port)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// migrateTo prepares b and asks a.
func (n *node) migrateTo(b *node) guardctl.Status {
	return n.migrateAs(b, func(*guardctl.Config) {})
}

// migrateAs changes the destination's configuration first.
func (n *node) migrateAs(b *node, change func(*guardctl.Config)) guardctl.Status {
	t := n.w.t
	t.Helper()
	s := n.running()
	cfg := b.incoming(n, s)
	change(&cfg)
	b.start(cfg)
	in := b.until("ready", func(s guardctl.Status) bool { return s.Incoming != nil && s.Incoming.Ready })
	err := n.ctl.Migrate(t.Context(), guardctl.MigrateRequest{Target: b.id, TargetName: b.name, Addresses: []string{b.address()},
		Port: in.Incoming.Port, Why: "the test says so"})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestMigrate(t *testing.T) {
	w := newWorld(t)
	a, b := w.node("a"), w.node("b")
	a.start(a.config())
	a.running()
	n := w.counts(0, 10)
	s := a.migrateTo(b)
	moved := a.until("moved", func(s guardctl.Status) bool { return s.Phase == guardctl.PhaseMoved && s.QEMUPID == 0 })
	there := b.running()
	if there.Run != s.Run || there.Restarts != 0 {
		t.Errorf("arrived as %+v", there)
	}
	if m := moved.Migration; m == nil || m.Active || m.Error != "" || m.Total == 0 {
		t.Errorf("progress %+v", m)
	} else {
		t.Logf("downtime %v, %d rounds, %v in all", m.Downtime, m.Round, m.Elapsed)
	}
	w.counts(n, 30)
	// The destination's guard is replaceable like any other.
	b.kill()
	b.startAgain()
	if s := b.running(); s.Adoptions != 1 || s.Run != there.Run {
		t.Errorf("adopted %+v", s)
	}
	n = w.counts(n, 40)
	// And back.
	a.kill()
	if err := os.RemoveAll(a.vmDir()); err != nil {
		t.Fatal(err)
	}
	b.migrateTo(a)
	b.until("moved back", func(s guardctl.Status) bool { return s.Phase == guardctl.PhaseMoved })
	a.running()
	w.counts(n, 30)
}

// The destination is lost in the middle: the VM goes on at the source.
func TestMigrateDestinationDies(t *testing.T) {
	w := newWorld(t)
	a, b := w.node("a"), w.node("b")
	a.start(a.config())
	a.running()
	n := w.counts(0, 3)
	a.migrateTo(b)
	b.kill()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	dead := qemu.Find(w.vm.String(), "/b/run/")
	if err := qemu.KillAll(ctx, dead); err != nil {
		t.Fatal(err)
	}
	s := a.until("over", func(s guardctl.Status) bool {
		return s.Migration != nil && !s.Migration.Active && s.Phase.Final() || s.State == model.VMRunning && !s.Migration.Active
	})
	if s.Phase == guardctl.PhaseMoved {
		t.Skip("the migration was over before the destination died")
	}
	if s.Migration.Error == "" {
		t.Errorf("progress %+v", s.Migration)
	}
	w.counts(n, 10)
}

// Without etcd no migration passes pre-switchover; the guest goes on.
func TestMigrateWithoutEtcd(t *testing.T) {
	w := newWorld(t)
	a, b := w.node("a"), w.node("b")
	a.start(a.config())
	s := a.running()
	n := w.counts(0, 3)
	b.start(b.incoming(a, s))
	in := b.until("ready", func(s guardctl.Status) bool { return s.Incoming != nil && s.Incoming.Ready })
	w.fault(faultEtcd, true)
	if err := a.ctl.Migrate(t.Context(), guardctl.MigrateRequest{Target: b.id, TargetName: "b", Addresses: []string{"127.0.0.1"}, Port: in.Incoming.Port}); err != nil {
		t.Fatal(err)
	}
	done := a.until("cancelled", func(s guardctl.Status) bool {
		return s.State == model.VMRunning && s.Migration != nil && !s.Migration.Active
	})
	if !strings.Contains(done.Migration.Error, "etcd") {
		t.Errorf("error %q", done.Migration.Error)
	}
	b.until("given up", func(s guardctl.Status) bool { return s.Phase == guardctl.PhaseLost && s.QEMUPID == 0 })
	w.counts(n, 10)
}

func FuzzDecodeMessage(f *testing.F) {
	for _, s := range []string{`{"op":"control","vm":"6f1b9c34-0000-4000-8000-000000000001","epoch":5}`, `{"op":"never"}`, `{}`, ``, `[]`} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := decodeMessage(b)
		if err == nil && m.Op == "" {
			t.Fatal("a message without op")
		}
	})
}
