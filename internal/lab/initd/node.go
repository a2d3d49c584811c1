package initd

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"roseau/internal/base/paths"
	"roseau/internal/driver/blockdev/faultdisk"
	"roseau/internal/driver/cgroup"
	"roseau/internal/driver/ctlsock"
	"roseau/internal/unit"
)

// Paths in a lab node, beside those of package paths.
const (
	LabRun  = "/run/roseau-lab"    // of the lab itself, in the node's tmpfs
	Binary  = LabRun + "/roseau"   // roseau, as the units run it
	DiskDir = "/lab-disks"         // of the disk files, under paths.State
	stateAt = "/var/lib/roseau"    // paths.State without a root of tests
	initLog = "init.log"           // of this process, beside the units' logs
	notify  = LabRun + "/notify"   // sockets of the units
	diskRun = faultdisk.Dir        // control pages and overlays
	shmSize = "size=64m,mode=1777" // of /dev/shm

	// InitGroup is the version 2 cgroup, below the node's, that this process and
	// units without Delegate are in. A unit with Delegate gets one beside it.
	InitGroup = "init"
)

// Node is what the lab's daemon writes, as one line of JSON, into the init's
// standard input. The pipe stays open: its end is the lab's end.
type Node struct {
	Name     string
	StateDir string      // on the host; becomes /var/lib/roseau
	LogDir   string      // on the host
	Binary   string      // roseau on the host; becomes Binary
	Disks    []Disk      // disk files in StateDir+DiskDir that get a fault layer
	Units    []unit.Unit // their Argv name Binary
	Env      []string
}

// Disk is a disk file and how it is at boot: what was pulled stays pulled.
type Disk struct {
	Name    string
	Pulled  bool
	Hang    bool
	Latency time.Duration
}

// prepare makes the disk's control page and an empty overlay.
func (d Disk) prepare() error {
	path := filepath.Join(paths.State, DiskDir, d.Name)
	if err := faultdisk.Prepare(diskRun, path); err != nil {
		return fmt.Errorf("prepare disk %s: %w", d.Name, err)
	}
	controlPath, _ := faultdisk.Files(diskRun, path)
	c, err := faultdisk.OpenControl(controlPath)
	if err != nil {
		return fmt.Errorf("prepare disk %s: %w", d.Name, err)
	}
	if d.Pulled {
		c.Pull(0) // there is nothing to lose yet
	}
	c.Slow(d.Latency)
	c.Hang(d.Hang)
	return c.Close()
}

// ReadyLine is written to standard output once the units are started.
const ReadyLine = "ready"

// Main is the first process of a node. It never returns before the node ends:
// with the lab's daemon, by SIGKILL.
func Main(ctx context.Context) error {
	if os.Getpid() != 1 {
		return errors.New("start node: lab-init must be the first process of its namespace")
	}
	// A process of the node must not be able to end it. Caught, not ignored: units
	// would inherit that they ignore SIGTERM.
	signal.Notify(make(chan os.Signal, 1), syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP)
	lifeline := bufio.NewReader(os.Stdin)
	line, err := lifeline.ReadBytes('\n')
	if err != nil {
		return fmt.Errorf("start node: read its description: %w", err)
	}
	var n Node
	if err := json.Unmarshal(line, &n); err != nil {
		return fmt.Errorf("start node: read its description: %w", err)
	}
	go func() {
		_, _ = io.Copy(io.Discard, lifeline)
		os.Exit(0) // the daemon is gone; the kernel ends everything else in here
	}()
	logs, err := n.enter()
	if err != nil {
		return fmt.Errorf("start node %s: %w", n.Name, err)
	}
	return n.run(context.WithoutCancel(ctx), logs)
}

// run supervises the units for ever.
func (n *Node) run(ctx context.Context, logs string) error {
	f, err := os.OpenFile(filepath.Join(logs, initLog), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	log := slog.New(slog.NewTextHandler(f, nil)).With("node", n.Name)
	log.Info("node boots")
	for _, d := range n.Disks {
		if err := d.prepare(); err != nil {
			return err
		}
	}
	sup, err := New(Config{
		Units: n.Units, LogDir: logs, NotifyDir: notify, UnitGroups: cgroup.Beside(InitGroup), Exit: func(code int) { end(code, log) },
		Env: append([]string{
			"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "LANG=C.UTF-8",
		}, n.Env...),
	}, log)
	if err != nil {
		return err
	}
	l, err := ctlsock.Listen(paths.LabInitSocket)
	if err != nil {
		return err
	}
	served := make(chan error, 1)
	go func() { served <- ctlsock.Serve(ctx, l, Handler(sup)) }()
	if _, err := fmt.Println(ReadyLine); err != nil {
		return err
	}
	return errors.Join(sup.Run(ctx), <-served)
}

// end ends the node with a code. The kernel reports a first process only when all
// others are gone, and a VM that a guard has frozen takes no SIGKILL in version 1.
func end(code int, log *slog.Logger) {
	if err := unix.Kill(-1, unix.SIGKILL); err != nil && !errors.Is(err, unix.ESRCH) {
		log.Error("end node: kill what runs", "err", err)
	}
	if err := cgroup.ThawInside(); err != nil {
		log.Error("end node: thaw its VMs", "err", err)
	}
	os.Exit(code)
}

// enter makes the node's mounts. It returns where the log directory is now.
func (n *Node) enter() (logs string, err error) {
	if err := unix.Sethostname([]byte(n.Name)); err != nil {
		return "", fmt.Errorf("set host name: %w", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return "", fmt.Errorf("make mounts private: %w", err)
	}
	// The host's directories are opened before the mounts that may hide them. The
	// files stay open for good: the log directory is reached through its file.
	var fds [3]string
	for i, path := range []string{n.StateDir, n.LogDir, n.Binary} {
		fd, err := unix.Open(path, unix.O_PATH|unix.O_CLOEXEC, 0)
		if err != nil {
			return "", &os.PathError{Op: "open", Path: path, Err: err}
		}
		fds[i] = fmt.Sprintf("/proc/self/fd/%d", fd)
	}
	if err := bindState(fds[0]); err != nil {
		return "", err
	}
	const safe = unix.MS_NOSUID | unix.MS_NODEV
	for _, m := range []struct {
		at, fs, opts string
		flags        uintptr
	}{
		{"/run", "tmpfs", "mode=0755", safe},
		{"/tmp", "tmpfs", "mode=1777", safe},
		{"/dev/shm", "tmpfs", shmSize, safe},
	} {
		if err := unix.Mount("lab", m.at, m.fs, m.flags, m.opts); err != nil {
			return "", fmt.Errorf("mount %s: %w", m.at, err)
		}
	}
	if err := errors.Join(os.Mkdir(LabRun, 0o700), os.MkdirAll(paths.Run, 0o755),
		os.Mkdir("/run/lock", 0o755), os.WriteFile(Binary, nil, 0o700)); err != nil {
		return "", err
	}
	if err := unix.Mount(fds[2], Binary, "", unix.MS_BIND, ""); err != nil {
		return "", fmt.Errorf("bind %s: %w", n.Binary, err)
	}
	return fds[1], mountKernel(safe)
}

// bindState puts the node's directory at /var/lib/roseau. Where the host has no
// such directory it is not made there: the node's /var/lib becomes a tmpfs with
// the host's entries bound into it.
func bindState(state string) error {
	if _, err := os.Stat(stateAt); errors.Is(err, os.ErrNotExist) {
		if err := mirror(filepath.Dir(stateAt)); err != nil {
			return err
		}
		if err := os.Mkdir(stateAt, 0o755); err != nil {
			return err
		}
	}
	if err := unix.Mount(state, stateAt, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("bind %s: %w", stateAt, err)
	}
	return nil
}

// mirror replaces dir by a tmpfs that shows the same entries.
func mirror(dir string) error {
	fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return &os.PathError{Op: "open", Path: dir, Err: err}
	}
	defer unix.Close(fd)
	old := fmt.Sprintf("/proc/self/fd/%d", fd)
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	if err := unix.Mount("lab", dir, "tmpfs", 0, "mode=0755,size=1m"); err != nil {
		return fmt.Errorf("mount %s: %w", dir, err)
	}
	for _, e := range entries {
		from, to := filepath.Join(old, e.Name()), filepath.Join(dir, e.Name())
		switch {
		case e.IsDir():
			err = os.Mkdir(to, 0o755)
		case e.Type()&os.ModeSymlink != 0:
			target, lerr := os.Readlink(from)
			if err = lerr; err == nil {
				err = os.Symlink(target, to)
			}
		default:
			err = os.WriteFile(to, nil, 0o600)
		}
		if err == nil && e.Type()&os.ModeSymlink == 0 {
			err = unix.Mount(from, to, "", unix.MS_BIND|unix.MS_REC, "")
		}
		if err != nil {
			return fmt.Errorf("mirror %s: %w", to, err)
		}
	}
	return nil
}

// mountKernel mounts /proc and /sys of the node's namespaces; the host's cgroups
// stay visible where they were.
func mountKernel(flags uintptr) error {
	const cgroups = "/sys/fs/cgroup"
	fd, cgErr := unix.Open(cgroups, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err := unix.Mount("proc", "/proc", "proc", flags|unix.MS_NOEXEC, ""); err != nil {
		return fmt.Errorf("mount /proc: %w", err)
	}
	if err := unix.Mount("sysfs", "/sys", "sysfs", flags|unix.MS_NOEXEC, ""); err != nil {
		return fmt.Errorf("mount /sys: %w", err)
	}
	if cgErr == nil {
		defer unix.Close(fd)
		// Best effort: guards make sub-cgroups where they can.
		_ = unix.Mount(fmt.Sprintf("/proc/self/fd/%d", fd), cgroups, "", unix.MS_BIND|unix.MS_REC, "")
	}
	for _, call := range []string{"iptables", "ip6tables", "arptables"} {
		// Else an inet forward policy of drop would kill bridged frames. Absent
		// where the kernel has no br_netfilter.
		_ = os.WriteFile("/proc/sys/net/bridge/bridge-nf-call-"+call, []byte("0"), 0)
	}
	return nil
}
