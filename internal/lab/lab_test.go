package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"roseau/internal/base/errs"
	"roseau/internal/base/ids"
	"roseau/internal/base/paths"
	"roseau/internal/driver/blockdev/faultdisk"
	"roseau/internal/driver/ctlsock"
	"roseau/internal/lab/initd"
	"roseau/internal/lab/labclient"
	"roseau/internal/unit"
)

// TestMain lets the test binary play roseau for the labs that it makes.
func TestMain(m *testing.M) {
	if len(os.Args) == 3 {
		var err error
		switch os.Args[1] {
		case "lab-init":
			err = initd.Main(context.Background())
		case "lab-daemon":
			log := slog.New(slog.NewTextHandler(os.Stderr, nil))
			err = Daemon(context.Background(), os.Args[2], log)
		case "write-disk":
			err = writeDisk(os.Args[2])
		default:
			os.Exit(m.Run())
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

// rig is a lab of two nodes whose units are shell scripts.
type rig struct {
	*testing.T
	*labclient.Client
	opts UpOptions
}

func quiet() *slog.Logger { return slog.New(slog.NewTextHandler(io.Discard, nil)) }

func testUnits() []unit.Unit {
	return []unit.Unit{
		{Name: unit.Node, Boot: true, Restart: unit.RestartAlways, KillMode: unit.KillGroup, BackoffMin: 10 * time.Millisecond,
			Argv: []string{"/bin/sh", "-c", "echo booted >>/var/lib/roseau/boots; exec sleep 1000"}, StopTimeout: 5 * time.Second},
		{Name: unit.Storage, Restart: unit.RestartNo, KillMode: unit.KillGroup,
			Argv: []string{"/bin/sh", "-c", "exec sleep 1000"}, StopTimeout: 5 * time.Second},
		{Name: "roseau-vm@", Restart: unit.RestartOnFailure, KillMode: unit.KillProcess,
			Argv: []string{"/bin/sh", "-c", "exec sleep 1000"}, StopTimeout: 5 * time.Second},
	}
}

func newRig(t *testing.T, name string) *rig {
	if os.Geteuid() != 0 {
		t.Skip("needs root for namespaces")
	}
	base, err := os.MkdirTemp("", "rl") // t.TempDir is too long for a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv("ROSEAU_LAB_DIR", base)
	before := takeInventory(t, base, name)
	r := &rig{T: t, opts: UpOptions{Spec: labclient.Spec{
		Name: name, Nodes: 2, DisksPerNode: 2, DiskSizeBytes: 64 << 20, Units: testUnits(), Seed: 1,
		Env: []string{"ROSEAU_TEST_LAB=" + base},
	}}}
	t.Cleanup(func() {
		if err := Down(context.Background(), filepath.Join(base, name), false, quiet()); err != nil {
			t.Error(err)
		}
		if left, _ := os.ReadDir(base); len(left) > 0 {
			t.Errorf("files left: %v", left)
		}
		os.RemoveAll(base)
		before.compare(t, takeInventory(t, base, name))
	})
	r.up()
	if up := takeInventory(t, base, name); len(up.procs) < 3 || len(up.netns) < 5 {
		t.Fatalf("the inventory does not see a lab that is up: %+v", up)
	}
	return r
}

func (r *rig) up() {
	r.Helper()
	c, err := Up(r.Context(), r.opts, quiet())
	if err != nil {
		r.Fatal(err)
	}
	r.Client = c
	r.T.Cleanup(c.Close)
}

func (r *rig) must(err error) {
	r.Helper()
	if err != nil {
		r.Fatal(err)
	}
}

func (r *rig) node(name string) labclient.Node {
	r.Helper()
	st, err := r.Status(r.Context())
	r.must(err)
	for _, n := range st.Nodes {
		if n.Name == name {
			return n
		}
	}
	r.Fatalf("no node %s in %+v", name, st)
	return labclient.Node{}
}

// sh runs a script on a node.
func (r *rig) sh(node, script string) string {
	r.Helper()
	var out bytes.Buffer
	code, err := Exec(r.Context(), r.node(node), []string{"/bin/sh", "-c", script}, Streams{Out: &out, Err: &out})
	if err != nil || code != 0 {
		r.Fatalf("on %s: %s: code %d, %v\n%s", node, script, code, err, &out)
	}
	return strings.TrimSpace(out.String())
}

func (r *rig) until(what string, cond func() bool) {
	r.Helper()
	for deadline := time.Now().Add(10 * time.Second); !cond(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			r.Fatalf("never: %s", what)
		}
	}
}

func TestNodeLife(t *testing.T) {
	r := newRig(t, "life")
	ctx := t.Context()
	n1 := r.node("n1")
	if n1.Power != labclient.On || len(n1.Units) != 1 || n1.Units[0].State != unit.Running {
		t.Fatalf("n1 after up: %+v", n1)
	}
	if got := r.sh("n1", "hostname; echo $(ls /proc | grep -c '^[0-9]'); stat -c %a /run; cat /sys/class/net/cl0/operstate"); !strings.HasPrefix(got, "n1\n") || !strings.HasSuffix(got, "755\nup") {
		t.Fatalf("inside n1: %q", got)
	}
	r.until("boot unit writes", func() bool { return r.sh("n1", "cat /var/lib/roseau/boots") == "booted" })
	r.sh("n1", "echo secret >/run/volatile; setsid sleep 500 >/dev/null 2>&1 &")

	_, err := r.CutNode(ctx, "n1")
	r.must(err)
	if n := r.node("n1"); n.Power != labclient.Off || n.InitPID != 0 {
		t.Fatalf("n1 after a cut: %+v", n)
	}
	if _, err := r.CutNode(ctx, "n1"); !errors.Is(err, errs.Conflict) {
		t.Fatalf("second cut: %v", err)
	}
	if _, err := r.CutNode(ctx, "n9"); !errors.Is(err, errs.NotFound) {
		t.Fatalf("cut of a node that is not: %v", err)
	}
	r.must(r.RestoreNode(ctx, "n1"))
	r.until("boot unit writes again", func() bool { return r.sh("n1", "cat /var/lib/roseau/boots") == "booted\nbooted" })
	r.sh("n1", "test ! -e /run/volatile")

	r.must(r.FreezeNode(ctx, "n1"))
	if n := r.node("n1"); n.Power != labclient.Frozen {
		t.Fatalf("n1 after a freeze: %+v", n)
	}
	r.must(r.ThawNode(ctx, "n1"))
	r.sh("n1", "true")
	r.must(r.FreezeNode(ctx, "n1"))
	_, err = r.CutNode(ctx, "n1") // of a frozen node
	r.must(err)
	r.must(r.RestoreNode(ctx, "n1"))

	r.must(r.ServiceStart(ctx, "n1", "storage"))
	pid := func() int {
		for _, u := range r.node("n1").Units {
			if u.Name == unit.Storage {
				return u.PID
			}
		}
		return 0
	}
	r.until("storage runs", func() bool { return pid() != 0 })
	begin := time.Now()
	r.must(r.ServiceStop(ctx, "n1", "storage"))
	if pid() != 0 {
		t.Fatal("storage runs after a stop")
	}
	if d := time.Since(begin); d >= 5*time.Second {
		t.Fatalf("SIGTERM ended nothing: the stop took %v", d)
	}
	_, err = r.ServiceKill(ctx, "n1", "node")
	r.must(err)
	r.until("node restarts", func() bool { u := r.node("n1").Units[0]; return u.Restarts == 1 && u.State == unit.Running })
	r.must(r.ServiceStop(ctx, "n1", "etcd"))
	if !r.node("n1").EtcdDown {
		t.Fatal("etcd is not down")
	}
	r.must(r.ServiceStart(ctx, "n1", "etcd"))
}

func TestPowerAndDisks(t *testing.T) {
	r := newRig(t, "disks")
	ctx := t.Context()
	if _, err := r.DiskCorrupt(ctx, labclient.Request{Node: "n1", Disk: "d1"}); !errors.Is(err, errs.Invalid) {
		t.Fatalf("corrupt of an empty disk: %v", err)
	}
	r.sh("n1", "dd if=/dev/urandom of=/var/lib/roseau/lab-disks/d1 bs=4k count=4 conv=notrunc 2>/dev/null")
	a, err := r.DiskCorrupt(ctx, labclient.Request{Node: "n1", Disk: "d1", Count: 3})
	r.must(err)
	if len(a.Flips) != 3 {
		t.Fatalf("flips: %+v", a)
	}
	r.sh("n1", "setsid /run/roseau-lab/roseau write-disk d2 >/dev/null 2>&1 &")
	r.until("written and half flushed", func() bool {
		f := r.node("n1").Disks[1].Fault
		return f.Flushes == 1 && f.DirtyBytes == 1<<20
	})
	r.must(r.DiskPull(ctx, "n2", "d2"))
	r.must(r.DiskSlow(ctx, "n2", "d1", time.Second))
	a, err = r.PowerCut(ctx)
	r.must(err)
	if len(a.Losses) != 4 || a.Losses[1].Sectors != 1<<20/512 {
		t.Fatalf("losses: %+v", a.Losses)
	}
	written, err := os.ReadFile(filepath.Join(r.Dir(), labclient.NodesDir, "n1", "state", initd.DiskDir, "d2"))
	r.must(err)
	if !bytes.Equal(written[:1<<20], bytes.Repeat([]byte{1}, 1<<20)) {
		t.Fatal("flushed bytes are gone")
	}
	if kept := bytes.Count(written[1<<20:2<<20], []byte{2}) / 512; kept != a.Losses[1].Kept {
		t.Fatalf("%d sectors on the disk, the report says %d", kept, a.Losses[1].Kept)
	}
	r.must(r.PowerRestore(ctx))
	disks := r.node("n2").Disks
	if f := disks[1].Fault; f == nil || !f.Pulled {
		t.Fatalf("a disk that was pulled came back with the power: %+v", disks[1])
	}
	if f := disks[0].Fault; f == nil || f.Latency != time.Second || disks[0].SizeBytes != 64<<20 {
		t.Fatalf("slow disk after a power cut: %+v", disks[0])
	}
	r.must(r.DiskInsert(ctx, "n2", "d2"))
	if f := r.node("n2").Disks[1].Fault; f.Pulled {
		t.Fatal("disk is out after insert")
	}
	if err := r.DiskPull(ctx, "n2", "d9"); !errors.Is(err, errs.NotFound) {
		t.Fatalf("pull of a disk that is not: %v", err)
	}
}

// writeDisk is a process of a node: it writes one MiB, flushes, writes another
// and waits for the power cut.
func writeDisk(name string) error {
	d, err := faultdisk.Open(faultdisk.Dir, filepath.Join("/var/lib/roseau", initd.DiskDir, name))
	if err != nil {
		return err
	}
	err = errors.Join(
		d.WritevAt([][]byte{bytes.Repeat([]byte{1}, 1<<20)}, 0), d.Datasync(),
		d.WritevAt([][]byte{bytes.Repeat([]byte{2}, 1<<20)}, 1<<20))
	if err != nil {
		return err
	}
	select {}
}

// TestGuardByName finds a guard by the VM's name in the node's run directory.
func TestGuardByName(t *testing.T) {
	r := newRig(t, "guard")
	id := ids.New()
	r.sh("n1", fmt.Sprintf(`mkdir -p /run/roseau/vm/%s; echo '{"vm":"%s","name":"web"}' >/run/roseau/vm/%s/config.json`, id, id, id))
	r.must(r.ServiceStart(t.Context(), "n1", "guard:web"))
	r.must(r.ServiceStop(t.Context(), "n1", "guard:"+id.String()))
	if err := r.ServiceStop(t.Context(), "n2", "guard:web"); !errors.Is(err, errs.NotFound) {
		t.Fatalf("guard of another node: %v", err)
	}
}

// TestFreezeWithoutCgroup stops and continues a node by signals alone, and
// leaves alone what was stopped before.
func TestFreezeWithoutCgroup(t *testing.T) {
	r := newRig(t, "signals")
	f := &freezer{initPID: r.node("n1").InitPID}
	// Stopped only once it has let go of the shell's output, for which sh waits.
	r.sh("n1", `sleep 500 >/dev/null 2>&1 & until grep -q sleep /proc/$!/comm; do :; done; kill -STOP $!`)
	states := func() (stopped, others int) {
		list, err := members(f.initPID)
		r.must(err)
		for _, p := range list {
			switch p.state {
			case 'T':
				stopped++
			case 'Z':
			default:
				others++
			}
		}
		return stopped, others
	}
	r.until("the child is stopped", func() bool { s, o := states(); return s == 1 && o == 2 })
	r.must(f.freeze())
	if _, others := states(); others != 0 {
		t.Fatalf("%d processes run on a frozen node", others)
	}
	r.must(f.thaw())
	r.until("all but the child go on", func() bool { s, o := states(); return s == 1 && o == 2 })
}

// withFrozenVM is a lab in which a guard of n1 has frozen its VM by a group of its
// own: a process that is frozen so takes no SIGKILL in version 1.
func withFrozenVM(t *testing.T, name string) *rig {
	r := newRig(t, name)
	if _, err := os.Stat("/sys/fs/cgroup/freezer/tasks"); err != nil {
		t.Skip("no version 1 freezer")
	}
	// Frozen only once it has let go of the shell's output, for which sh waits.
	r.sh("n1", `d=/sys/fs/cgroup/freezer$(sed -n 's/^.*:freezer://p' /proc/1/cgroup)/roseau-vm-x
		mkdir $d && { sleep 500 >/dev/null 2>&1 & } && until grep -q sleep /proc/$!/comm; do :; done
		echo $! >$d/cgroup.procs && echo FROZEN >$d/freezer.state
		until grep -qx FROZEN $d/freezer.state; do :; done`)
	return r
}

// TestCutWithFrozenVM cuts the node.
func TestCutWithFrozenVM(t *testing.T) {
	r := withFrozenVM(t, "frozenvm")
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	_, err := r.CutNode(ctx, "n1")
	r.must(err)
	found, _ := filepath.Glob("/sys/fs/cgroup/*/roseau-lab-frozenvm-*-n1")
	if len(found) > 0 {
		t.Errorf("groups of a node without power: %v", found)
	}
}

// TestRebootWithFrozenVM lets the node boot anew in order.
func TestRebootWithFrozenVM(t *testing.T) {
	r := withFrozenVM(t, "rebootvm")
	was := r.node("n1").InitPID
	init := ctlsock.New(ctlsock.Client{Socket: fmt.Sprintf("/proc/%d/root%s", was, paths.LabInitSocket), Who: "the node's init"}, false)
	r.must(init.Call(t.Context(), http.MethodPost, "/power/reboot", nil, nil))
	r.until("the node is up again", func() bool {
		n := r.node("n1")
		return n.Power == labclient.On && n.InitPID != was
	})
}

func FuzzParseStat(f *testing.F) {
	f.Add("1 (a) b) S 1 1 1 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 77 1 1")
	f.Add("")
	f.Fuzz(func(t *testing.T, s string) {
		if st, err := parseStat(s); err == nil && st.state == 0 {
			t.Fatalf("%q has no state", s)
		}
	})
}

// TestOutside reaches a node from the outside host, and records its frames.
func TestOutside(t *testing.T) {
	r := newRig(t, "outside")
	ctx := t.Context()
	r.sh("n1", "ip address add 10.202.6.11/16 dev vm0")
	script := `exec python3 -c 'import socket; s=socket.create_server(("10.202.6.11", 80)); c,_=s.accept(); c.sendall(b"hello")'`
	if _, err := exec.LookPath("python3"); err != nil {
		t.Skip("needs python3 for a server in the node")
	}
	go Exec(ctx, r.node("n1"), []string{"/bin/sh", "-c", script}, Streams{})
	tap, err := r.Socket(ctx, labclient.SocketRequest{Namespace: "vm", Domain: unix.AF_PACKET, Type: unix.SOCK_RAW, Protocol: int(htons(unix.ETH_P_ALL))})
	r.must(err)
	defer tap.Close()
	var conn net.Conn
	r.until("server answers", func() bool {
		conn, err = r.DialOutside(ctx, "tcp", "10.202.6.11:80")
		return err == nil
	})
	defer conn.Close()
	if b, _ := io.ReadAll(conn); string(b) != "hello" {
		t.Fatalf("from outside: %q", b)
	}
	st, err := r.Status(ctx)
	r.must(err)
	if !slices.Contains(st.Ports["vm"], labclient.Port{Node: "n1", Index: 1001}) {
		t.Fatalf("ports: %+v", st.Ports)
	}
	seen := map[int]bool{}
	buf := make([]byte, 2048)
	r.until("frames at both ports", func() bool {
		_, from, err := unix.Recvfrom(int(tap.Fd()), buf, unix.MSG_DONTWAIT)
		if err == nil {
			seen[from.(*unix.SockaddrLinklayer).Ifindex] = true
		}
		return seen[1001] && seen[2000]
	})
	r.must(r.LinkCut(ctx, "n1", "vm"))
	short, cancel := context.WithTimeout(ctx, 300*time.Millisecond)
	defer cancel()
	if c, err := r.DialOutside(short, "tcp", "10.202.6.11:80"); err == nil {
		c.Close()
		t.Fatal("connected through a cut cable")
	}
}

func htons(v uint16) uint16 { return v<<8 | v>>8 }

// TestKilledDaemon shows that a lab does not outlive its daemon, and that the
// next up cleans what is left and goes on with the nodes' files.
func TestKilledDaemon(t *testing.T) {
	r := newRig(t, "killed")
	st, err := r.Status(t.Context())
	r.must(err)
	r.sh("n1", "echo kept >/var/lib/roseau/file")
	init := proc{PID: st.Nodes[0].InitPID}
	s, err := readStat(init.PID)
	r.must(err)
	init.StartTicks = s.startTicks
	r.must(syscall.Kill(st.PID, syscall.SIGKILL))
	r.until("node ends with its daemon", func() bool { return !init.alive() })
	r.up()
	if got := r.sh("n1", "cat /var/lib/roseau/file"); got != "kept" {
		t.Fatalf("file after the daemon's death: %q", got)
	}
	r.opts.Spec.Nodes = 3
	if _, err := Up(t.Context(), r.opts, quiet()); err != nil {
		t.Fatalf("up of a lab that is up: %v", err)
	}
}

// TestTwoLabs runs two labs of the same addresses side by side.
func TestTwoLabs(t *testing.T) {
	a := newRig(t, "a")
	base := os.Getenv("ROSEAU_LAB_DIR")
	b := &rig{T: t, opts: a.opts}
	b.opts.Spec.Name = "b"
	b.up()
	a.sh("n1", "ip addr show cl0 | grep -q 10.203.0.11/24")
	b.sh("n1", "ip addr show cl0 | grep -q 10.203.0.11/24")
	if a.node("n1").API == b.node("n1").API {
		t.Fatal("two labs share a port")
	}
	a.must(Down(t.Context(), filepath.Join(base, "b"), false, quiet()))
	a.sh("n1", "true")
}

// inventory is what a lab must not leave behind. Other labs may come and go
// meanwhile: processes are known by the lab's directory in their environment,
// namespaces by these processes and the test's own.
type inventory struct {
	mounts, links, netns, cgroups, procs []string
}

func takeInventory(t *testing.T, base, name string) (v inventory) {
	t.Helper()
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	v.mounts = strings.Split(string(mounts), "\n")
	ifs, err := net.Interfaces()
	if err != nil {
		t.Fatal(err)
	}
	for _, i := range ifs {
		v.links = append(v.links, i.Name)
	}
	self := fmt.Sprintf("/proc/%d", os.Getpid())
	dirs, _ := filepath.Glob("/proc/[0-9]*")
	for _, dir := range dirs {
		env, err := os.ReadFile(dir + "/environ")
		cmd, _ := os.ReadFile(dir + "/cmdline")
		if err != nil || dir != self && !bytes.Contains(append(env, cmd...), []byte(base)) {
			continue
		}
		if dir != self {
			v.procs = append(v.procs, dir+" "+string(cmd))
		}
		fds, _ := filepath.Glob(dir + "/fd/*")
		for _, path := range append(fds, dir+"/ns/net") {
			if to, err := os.Readlink(path); err == nil && strings.HasPrefix(to, "net:[") {
				v.netns = append(v.netns, to)
			}
		}
	}
	_ = filepath.WalkDir("/sys/fs/cgroup", func(p string, d os.DirEntry, err error) error {
		if err == nil && d.IsDir() && strings.Contains(p, "/roseau-lab-"+name+"-") {
			v.cgroups = append(v.cgroups, p)
		}
		return nil // groups of others come and go
	})
	return v
}

// compare fails the test for whatever is there now and was not before.
func (v inventory) compare(t *testing.T, now inventory) {
	t.Helper()
	for what, lists := range map[string][2][]string{
		"mount": {v.mounts, now.mounts}, "interface": {v.links, now.links}, "network namespace": {v.netns, now.netns},
		"cgroup": {v.cgroups, now.cgroups}, "process": {v.procs, now.procs},
	} {
		for _, x := range lists[1] {
			if !slices.Contains(lists[0], x) {
				t.Errorf("%s left: %s", what, x)
			}
		}
	}
}

// The controllers answer on the cluster switch while the lab is up, power their
// node, and keep password and certificate with the lab.
func TestControllers(t *testing.T) {
	r := newRig(t, "bmcs")
	n1 := r.node("n1")
	if n1.BMC == nil || n1.BMC.Fingerprint == "" || n1.BMC.Fingerprint == r.node("n2").BMC.Fingerprint {
		t.Fatalf("controllers: %+v", n1.BMC)
	}
	password, err := os.ReadFile(n1.BMC.PasswordFile)
	r.must(err)
	// As n2 reaches it: every request runs in that node's namespaces.
	ask := func(user, method, path, body string) (string, int) {
		t.Helper()
		var out bytes.Buffer
		argv := []string{"curl", "-sk", "-m", "10", "-u", user, "-X", method, n1.BMC.Address + path}
		if body != "" {
			argv = append(argv, "-d", body)
		}
		code, err := Exec(r.Context(), r.node("n2"), argv, Streams{Out: &out, Err: &out})
		r.must(err)
		return out.String(), code
	}
	if _, err := exec.LookPath("curl"); err != nil {
		t.Skip("needs curl")
	}
	good := n1.BMC.User + ":" + strings.TrimSpace(string(password))
	const system = "/redfish/v1/Systems/1"
	if out, _ := ask(n1.BMC.User+":wrong", "GET", system, ""); !strings.Contains(out, "password is wrong") {
		t.Errorf("wrong password: %s", out)
	}
	if out, _ := ask(good, "GET", system, ""); !strings.Contains(out, `"PowerState":"On"`) {
		t.Errorf("power: %s", out)
	}
	reset := func(typ string) {
		t.Helper()
		if out, code := ask(good, "POST", system+"/Actions/ComputerSystem.Reset", `{"ResetType":"`+typ+`"}`); code != 0 || out != "" {
			t.Fatalf("%s: %d, %s", typ, code, out)
		}
	}
	reset("ForceOff")
	if n := r.node("n1"); n.Power != labclient.Off {
		t.Fatalf("power is %s after ForceOff", n.Power)
	}
	if out, _ := ask(good, "GET", system, ""); !strings.Contains(out, `"PowerState":"Off"`) {
		t.Errorf("power: %s", out)
	}
	reset("On")
	r.until("there is power after On", func() bool { return r.node("n1").Power == labclient.On })
	r.must(r.BMCCut(r.Context(), "n1"))
	if out, code := ask(good, "GET", system, ""); code == 0 {
		t.Errorf("off the network, and answers: %s", out)
	}
	r.must(r.BMCRestore(r.Context(), "n1"))
	if out, _ := ask(good, "GET", system, ""); !strings.Contains(out, `"PowerState":"On"`) {
		t.Errorf("back on the network: %s", out)
	}
	r.must(r.BMCRenew(r.Context(), "n1"))
	renewed := r.node("n1").BMC.Fingerprint
	if renewed == n1.BMC.Fingerprint {
		t.Error("the certificate is the same after renew")
	}
	r.must(Down(r.Context(), r.Dir(), true, quiet()))
	r.up()
	again := r.node("n1")
	if b, err := os.ReadFile(again.BMC.PasswordFile); err != nil || string(b) != string(password) || again.BMC.Fingerprint != renewed {
		t.Errorf("a kept lab has other controllers: %v", err)
	}
}
