package guard

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"roseau/internal/base/errs"
	"roseau/internal/base/ids"
	"roseau/internal/base/paths"
	"roseau/internal/block/volume"
	"roseau/internal/core/vmguard"
	"roseau/internal/driver/cgroup"
	"roseau/internal/driver/guardctl"
	"roseau/internal/driver/qemu"
)

// record is run.json: what a successor must know of the QEMU. It lives under
// /run, as long as the QEMU can.
type record struct {
	Attempt     uint64             `json:"attempt"`
	Saved       vmguard.Saved      `json:"saved"`
	PID         int                `json:"pid,omitempty"`
	Start       uint64             `json:"start,omitempty"`
	Predecessor volume.Predecessor `json:"predecessor"` // the promise that this guard holds
	Accel       qemu.Accelerator   `json:"accel"`
	CPUModel    string             `json:"cpu_model,omitempty"` // that QEMU was started with
	PoweredOn   time.Time          `json:"powered_on,omitzero"`
	Adoptions   int                `json:"adoptions"`
}

// outcome is outcome.json: a final phase and the attempt that ended.
type outcome struct {
	Attempt uint64         `json:"attempt"`
	Phase   guardctl.Phase `json:"phase"`
	Reason  string         `json:"reason,omitempty"`
}

// files names what stands in a VM's run directory. QEMU's own part belongs to
// QEMU's user.
type files struct{ dir string }

func (f files) record() string     { return filepath.Join(f.dir, "run.json") }
func (f files) outcome() string    { return filepath.Join(f.dir, "outcome.json") }
func (f files) cache() string      { return filepath.Join(f.dir, "volumes.json") }
func (f files) qemuLog() string    { return filepath.Join(f.dir, "qemu.log") }
func (f files) nbd(i int) string   { return filepath.Join(f.dir, "nbd"+strconv.Itoa(i)+".sock") }
func (f files) migrateOut() string { return filepath.Join(f.dir, "migrate-out.sock") }
func (f files) qemuDir() string    { return filepath.Join(f.dir, "qemu") }
func (f files) qmp() string        { return filepath.Join(f.qemuDir(), "qmp.sock") }
func (f files) serial() string     { return filepath.Join(f.qemuDir(), "serial.sock") }
func (f files) serialLog() string  { return filepath.Join(f.qemuDir(), "console.log") }
func (f files) vnc() string        { return filepath.Join(f.qemuDir(), "vnc.sock") }
func (f files) migrateIn() string  { return filepath.Join(f.qemuDir(), "migrate-in.sock") }
func accelCache() string           { return filepath.Join(paths.Run, "accel.json") }
func (f files) remove(path string) { _ = os.Remove(path) } // absent is as good
func own(path string, u qemu.User) { _ = os.Chown(path, int(u.UID), int(u.GID)) }
func isRoot() bool                 { return os.Getuid() == 0 }
func ownIfRoot(p string, u qemu.User) {
	if isRoot() {
		own(p, u)
	}
}

// prepare makes the directories and lets QEMU's user pass through them.
func (f files) prepare(u qemu.User) error {
	if err := os.MkdirAll(f.qemuDir(), 0o711); err != nil {
		return err
	}
	ownIfRoot(f.qemuDir(), u)
	if err := os.Chmod(f.qemuDir(), 0o700); err != nil {
		return err
	}
	for d := f.dir; len(d) >= len(paths.Run); d = filepath.Dir(d) {
		st, err := os.Stat(d)
		if err != nil {
			return err
		}
		if st.Mode().Perm()&0o011 != 0o011 {
			if err := os.Chmod(d, st.Mode().Perm()|0o011); err != nil {
				return err
			}
		}
	}
	return nil
}

// cleanQEMU removes what a dead QEMU left.
func (f files) cleanQEMU() {
	for _, p := range []string{f.qmp(), f.serial(), f.vnc(), f.migrateIn(), f.migrateOut()} {
		f.remove(p)
	}
}

func (f files) readRecord() (record, bool) {
	var r record
	err := guardctl.ReadFileJSON(f.record(), &r)
	return r, err == nil && !r.Saved.Run.IsZero()
}

// takeLock makes this process the VM's one guard: a living holder is killed by
// pidfd, so that its end is proved by the kernel before anything is touched.
func takeLock(ctx context.Context, vm ids.ID, log *slog.Logger) (*os.File, error) {
	path := paths.VMLock(vm)
	if err := os.MkdirAll(filepath.Dir(path), 0o711); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			text := fmt.Sprintf("%d\n", os.Getpid())
			_, werr := f.WriteAt([]byte(text), 0)
			return f, errors.Join(werr, f.Truncate(int64(len(text))))
		}
		if !errors.Is(err, unix.EWOULDBLOCK) {
			return nil, errors.Join(fmt.Errorf("lock %s: %w", path, err), f.Close())
		}
		killHolder(f, vm, log)
		select {
		case <-ctx.Done():
			return nil, errors.Join(errs.New(errs.Conflict, "lock %s: another guard holds it and does not end", path), f.Close())
		case <-time.After(qemu.Poll):
		}
	}
}

// killHolder kills the process that the lock file names, if it is a guard of
// this VM.
func killHolder(f *os.File, vm ids.ID, log *slog.Logger) {
	b := make([]byte, 32)
	n, _ := f.ReadAt(b, 0)
	pid, err := strconv.Atoi(strings.TrimSpace(string(b[:n])))
	if err != nil || pid <= 1 || pid == os.Getpid() {
		return
	}
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return // it is gone; the lock follows
	}
	defer unix.Close(fd)
	cmdline, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	if err != nil || !strings.Contains(string(cmdline), "vmguard") || !strings.Contains(string(cmdline), vm.String()) {
		return
	}
	log.Warn("killing the guard that holds the lock", "pid", pid)
	_ = unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0)
}

// StopQEMU is the supervisor's hook after a guard has died: it stops the VM's
// QEMU, by its control group or SIGSTOP, and makes room for the next guard, which
// lets it go on.
func StopQEMU(vm ids.ID) error {
	f := files{paths.VMDir(vm)}
	r, ok := f.readRecord()
	if !ok {
		return nil // no QEMU was started
	}
	p, err := qemu.Attach(r.PID, r.Start)
	if errors.Is(err, errs.NotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	group, _ := cgroup.Of(p.PID, vm.String()) // none: SIGSTOP
	freeze(p, group, slog.Default())
	if group == nil {
		return nil
	}
	return group.Loosen()
}
