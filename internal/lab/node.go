package lab

import (
	"bufio"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"roseau/internal/base/clock"
	"roseau/internal/base/errs"
	"roseau/internal/base/paths"
	"roseau/internal/driver/blockdev/faultdisk"
	"roseau/internal/driver/locate"
	"roseau/internal/lab/cable"
	"roseau/internal/lab/initd"
	"roseau/internal/lab/labclient"
	"roseau/internal/unit"
)

// bootTimeout bounds the time from power to started units.
const bootTimeout = 20 * time.Second

// node is one node and its power.
type node struct {
	lab    *Lab
	name   string
	number int // from 1
	dir    string
	log    *slog.Logger
	api    *forward    // nil: it has none
	bmc    *controller // nil: it has none
	supply atomic.Bool // as power != Off, readable while an order goes on

	diskCount int
	mu        sync.Mutex // held for the whole of a power order
	power     labclient.Power
	life      *life // nil without power
	disks     []diskState
	etcdDown  bool
	binary    string // roseau at its next boot; "" = the lab's
	boots     int
}

// diskState is what people did to a disk; it outlives the node's power.
type diskState struct {
	name    string
	pulled  bool
	hang    bool
	latency time.Duration
}

// life is one time between power on and power off.
type life struct {
	cmd      *exec.Cmd
	lifeline *os.File // its end ends the node
	exited   chan struct{}
	ns       *os.File // network namespace
	freezer  *freezer
	handles  map[string]*faultdisk.Handle // by disk; nil without the fault layer
	ending   bool                         // an order ends it; protected by node.mu
}

func (n *node) stateDir() string { return filepath.Join(n.dir, "state") }
func (n *node) logDir() string   { return filepath.Join(n.dir, "log") }

// diskFile is the backing file on the host.
func (n *node) diskFile(disk string) string { return filepath.Join(n.stateDir(), initd.DiskDir, disk) }

// prepare makes the node's directories and disks, where they are missing.
func (n *node) prepare() error {
	for _, dir := range []string{n.stateDir(), n.logDir(), filepath.Join(n.stateDir(), initd.DiskDir)} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
	}
	for i := range n.diskCount {
		d := diskState{name: fmt.Sprintf("d%d", i+1)}
		f, err := os.OpenFile(n.diskFile(d.name), os.O_CREATE|os.O_RDWR, 0o600)
		if err != nil {
			return err
		}
		fi, err := f.Stat()
		if err == nil && fi.Size() == 0 {
			err = f.Truncate(n.lab.spec.DiskSizeBytes)
		}
		if err = errors.Join(err, f.Close()); err != nil {
			return fmt.Errorf("make disk %s/%s: %w", n.name, d.name, err)
		}
		n.disks = append(n.disks, d)
	}
	return nil
}

// powerOn boots the node. It is a Conflict if it has power.
func (n *node) powerOn(ctx context.Context) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.power != labclient.Off {
		return errs.New(errs.Conflict, "restore node %s: it has power", n.name)
	}
	begin := clock.System{}.Now()
	l, ready, err := n.spawn()
	if err != nil {
		return fmt.Errorf("boot node %s: %w", n.name, err)
	}
	n.life = l
	if err := n.boot(ctx, l, ready); err != nil {
		_, cerr := n.end()
		return fmt.Errorf("boot node %s: %w", n.name, errors.Join(err, cerr))
	}
	n.power, n.etcdDown = labclient.On, false
	n.supply.Store(true)
	n.boots++
	n.lab.tasks.Add(1)
	go func() {
		defer n.lab.tasks.Done()
		n.watch(l)
	}()
	n.log.Info("node is up", "pid", l.cmd.Process.Pid, "dur", clock.System{}.Now().Sub(begin))
	return nil
}

// spawn starts the node's first process, which waits for its description.
func (n *node) spawn() (l *life, ready *os.File, err error) {
	var files []*os.File
	defer func() {
		for _, f := range files {
			f.Close()
		}
	}()
	inR, inW, err := os.Pipe()
	if err != nil {
		return nil, nil, err
	}
	files = append(files, inR)
	outR, outW, err := os.Pipe()
	if err != nil {
		inW.Close()
		return nil, nil, err
	}
	files = append(files, outW)
	stderr, err := os.OpenFile(filepath.Join(n.logDir(), "boot.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		inW.Close()
		outR.Close()
		return nil, nil, err
	}
	files = append(files, stderr)
	cmd := exec.Command(n.lab.spec.Binary, "lab-init", n.name)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = inR, outW, stderr
	cmd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "GOMAXPROCS=2", "ROSEAU_LAB_DIR=" + filepath.Dir(n.lab.dir)}
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWPID | unix.CLONE_NEWNS | unix.CLONE_NEWUTS | unix.CLONE_NEWNET | unix.CLONE_NEWIPC,
		Setsid:     true,
	}
	if err := cmd.Start(); err != nil {
		inW.Close()
		outR.Close()
		return nil, nil, err
	}
	l = &life{cmd: cmd, lifeline: inW, exited: make(chan struct{}), handles: map[string]*faultdisk.Handle{}}
	l.freezer = newFreezer(n.lab.cgroupName(n.name), cmd.Process.Pid)
	go func() { // ends with the process, which every order that ends a life waits for
		_ = cmd.Wait()
		close(l.exited)
	}()
	return l, outR, nil
}

// boot plugs the node in, describes it to its init and waits for its units.
func (n *node) boot(ctx context.Context, l *life, ready *os.File) (err error) {
	defer ready.Close()
	if err := n.lab.record(n.name, l); err != nil {
		return err
	}
	if l.ns, err = os.Open(netNamespace(l.cmd.Process.Pid)); err != nil {
		return err
	}
	if err := n.lab.board.Plug(n.name, n.number, l.ns); err != nil {
		return err
	}
	description, err := json.Marshal(n.description())
	if err != nil {
		return err
	}
	if _, err := l.lifeline.Write(append(description, '\n')); err != nil {
		return err
	}
	if err := ready.SetReadDeadline(time.Now().Add(bootTimeout)); err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { _ = ready.SetReadDeadline(time.Now()) })
	defer stop()
	line, err := bufio.NewReader(ready).ReadString('\n')
	if err != nil || strings.TrimSpace(line) != initd.ReadyLine {
		return errs.New(errs.Unavailable, "its init is not ready: %w", err).
			WithHint("read %s", filepath.Join(n.logDir(), "boot.log"))
	}
	return n.hold(l)
}

func (n *node) description() initd.Node {
	d := initd.Node{
		Name: n.name, StateDir: n.stateDir(), LogDir: n.logDir(), Binary: cmp.Or(n.binary, n.lab.spec.Binary),
		Units: n.lab.units(n), Env: n.lab.spec.Env,
	}
	if !n.lab.spec.RawDisks {
		for _, s := range n.disks {
			d.Disks = append(d.Disks, initd.Disk{Name: s.name, Pulled: s.pulled, Hang: s.hang, Latency: s.latency})
		}
	}
	return d
}

func netNamespace(pid int) string { return fmt.Sprintf("/proc/%d/ns/net", pid) }

// inside returns a path of the node as the host sees it.
func (l *life) inside(path string) string {
	return fmt.Sprintf("/proc/%d/root%s", l.cmd.Process.Pid, path)
}

// hold keeps the disks' overlays reachable beyond the node's end.
func (n *node) hold(l *life) error {
	if n.lab.spec.RawDisks {
		return nil
	}
	for _, s := range n.disks {
		control, overlay := faultdisk.Files(faultdisk.Dir, s.name)
		h, err := faultdisk.Hold(l.inside(control), l.inside(overlay), n.diskFile(s.name))
		if err != nil {
			return fmt.Errorf("hold disk %s: %w", s.name, err)
		}
		l.handles[s.name] = h
	}
	return nil
}

// watch collects a node whose init ended by itself: it was ordered off, or to
// boot anew, by its own daemon; else it is an accident.
func (n *node) watch(l *life) {
	<-l.exited
	code := l.cmd.ProcessState.ExitCode()
	if !n.collect(l, code) || code != initd.ExitReboot {
		return
	}
	// The lab that goes down refuses the boot.
	if err := n.powerOn(context.Background()); err != nil {
		n.log.Error("reboot node", "err", err)
	}
}

// collect ends a life whose first process has ended; false: an order did.
func (n *node) collect(l *life, code int) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.life != l || l.ending {
		return false
	}
	switch code {
	case initd.ExitOff, initd.ExitReboot:
		n.log.Info("node went down in order", "reboot", code == initd.ExitReboot)
	default:
		n.log.Error("node's init ended by itself: the node has no power now", "state", l.cmd.ProcessState)
	}
	err := n.lab.board.Unpowered(n.name)
	if _, e := n.end(); e != nil || err != nil {
		n.log.Error("collect node", "err", errors.Join(err, e))
	}
	return true
}

// cut takes the power. The answer tells what the disks lost.
func (n *node) cut() (at time.Time, losses []labclient.DiskLoss, err error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.power == labclient.Off {
		return at, nil, errs.New(errs.Conflict, "cut node %s: it has no power", n.name)
	}
	// The time first: recorders outside count from here.
	at = clock.System{}.Wall()
	unplug := n.lab.board.Unpowered(n.name)
	losses, err = n.end()
	n.log.Info("node is cut", "losses", len(losses))
	return at, losses, errors.Join(unplug, err)
}

// end kills what lives of the node and gives back all that it held. mu is held.
func (n *node) end() (losses []labclient.DiskLoss, err error) {
	l := n.life
	l.ending = true
	select {
	case <-l.exited:
	default:
		if err = l.freezer.kill(); errors.Is(err, syscall.ESRCH) {
			err = nil
		}
	}
	<-l.exited // the kernel reports a first process only when all others are gone
	for _, s := range n.disks {
		h := l.handles[s.name]
		if h == nil {
			continue
		}
		seed := n.lab.seed()
		loss, lerr := h.PowerLoss(seed)
		n.log.Info("disk lost power", "disk", s.name, "seed", loss.Seed, "chance", loss.Chance, "sectors", loss.Sectors, "kept", loss.Kept)
		losses = append(losses, labclient.DiskLoss{Node: n.name, Disk: s.name, Loss: loss})
		err = errors.Join(err, lerr)
	}
	if l.ns != nil {
		err = errors.Join(err, l.ns.Close())
	}
	err = errors.Join(err, l.lifeline.Close(), l.freezer.remove(), n.lab.forget(n.name, l))
	n.life, n.power = nil, labclient.Off
	n.supply.Store(false)
	return losses, err
}

// freeze and thaw stop and continue all processes of the node.
func (n *node) freeze() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.power != labclient.On {
		return errs.New(errs.Conflict, "freeze node %s: its power is %s", n.name, n.power)
	}
	if err := n.life.freezer.freeze(); err != nil {
		return fmt.Errorf("node %s: %w", n.name, errors.Join(err, n.life.freezer.thaw()))
	}
	n.power = labclient.Frozen
	n.log.Info("node is frozen")
	return nil
}

func (n *node) thaw() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.power != labclient.Frozen {
		return errs.New(errs.Conflict, "thaw node %s: it is not frozen", n.name)
	}
	if err := n.life.freezer.thaw(); err != nil {
		return fmt.Errorf("thaw node %s: %w", n.name, err)
	}
	n.power = labclient.On
	n.log.Info("node is thawed")
	return nil
}

// running calls f with the node's life if it has power and is not frozen. No
// power order happens meanwhile.
func (n *node) running(what string, f func(*life) error) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.power != labclient.On {
		return errs.New(errs.Conflict, "%s: the power of node %s is %s", what, n.name, n.power)
	}
	return f(n.life)
}

// units returns a controller of the node's units.
func (l *life) units() *unit.LabClient { return unit.NewLabClient(l.inside("/run/roseau/init.sock")) }

// status describes the node.
func (n *node) status(ctx context.Context) labclient.Node {
	st := labclient.Node{Name: n.name, CutLinks: n.lab.board.Cut(n.name), Losses: n.lab.board.Losses(n.name), Addresses: map[string]string{}}
	if n.api != nil {
		st.API = n.api.address()
	}
	for _, w := range cable.Networks {
		if a := w.NodeAddress(n.number); a.IsValid() {
			st.Addresses[w.Name] = a.Addr().String()
		}
	}
	if n.bmc != nil {
		st.BMC = n.bmc.status()
	}
	st.Addresses["vm"] = cable.VMAddress(n.number).Addr().String()
	n.mu.Lock()
	defer n.mu.Unlock()
	st.Power, st.EtcdDown, st.Boots = n.power, n.etcdDown, n.boots
	st.Binary = n.binary
	for _, s := range n.disks {
		d := labclient.Disk{Name: s.name, Path: filepath.Join(paths.State, initd.DiskDir, s.name)}
		var fi unix.Stat_t
		if unix.Stat(n.diskFile(s.name), &fi) == nil {
			d.SizeBytes, d.AllocatedBytes = fi.Size, fi.Blocks*512
		}
		if n.life != nil && n.life.handles[s.name] != nil {
			state := n.life.handles[s.name].Control().State()
			d.Fault = &state
		} else if s.pulled || s.hang || s.latency > 0 {
			d.Fault = &faultdisk.State{Pulled: s.pulled, Hang: s.hang, Latency: s.latency}
		}
		_, err := os.Stat(locate.LabFile(filepath.Join(n.stateDir(), labHealthDir), s.name))
		d.Lamp = err == nil
		st.Disks = append(st.Disks, d)
	}
	if n.life != nil {
		st.InitPID = n.life.cmd.Process.Pid
	}
	if n.power == labclient.On {
		ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
		defer cancel()
		c := n.life.units()
		defer c.Close()
		if list, err := c.List(ctx); err == nil {
			st.Units, st.GuardNames = list, guardNames(n.life)
		}
	}
	return st
}
