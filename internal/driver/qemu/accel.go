package qemu

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Accelerator is what this machine runs guests with.
type Accelerator struct {
	Name   string `json:"name"`   // kvm | tcg
	Reason string `json:"reason"` // why not kvm; empty with kvm
	Boot   string `json:"boot"`   // the kernel's boot id: the finding holds until the next boot
}

// probeTimeout is ample for a firmware and four instructions under KVM.
const probeTimeout = 4 * time.Second

// probeExit is QEMU's exit status when the guest wrote 0x10 to the debug port.
const probeExit = 0x10<<1 | 1

// bootSector writes 0x10 to port 0xf4 and halts.
func bootSector() []byte {
	b := make([]byte, 512)
	copy(b, []byte{
		0xb0, 0x10, // mov al, 0x10
		0xba, 0xf4, 0x00, // mov dx, 0xf4
		0xee,       // out dx, al
		0xf4,       // hlt
		0xeb, 0xfd, // jmp to the hlt
	})
	b[510], b[511] = 0x55, 0xaa
	return b
}

// Detect returns the finding kept in cache (a file), or tests KVM: a /dev/kvm
// that opens may still be unable to run an ordinary guest, so a tiny one is run
// through firmware and boot sector.
func Detect(ctx context.Context, cache string) Accelerator {
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		boot = []byte("unknown")
	}
	id := strings.TrimSpace(string(boot))
	var a Accelerator
	if b, err := os.ReadFile(cache); err == nil && json.Unmarshal(b, &a) == nil && a.Boot == id && a.Name != "" {
		return a
	}
	a = Accelerator{Name: "kvm", Boot: id}
	if err := probeKVM(ctx); err != nil {
		a.Name, a.Reason = "tcg", err.Error()
	}
	if b, err := json.Marshal(a); err == nil && ctx.Err() == nil {
		tmp := fmt.Sprintf("%s.%d", cache, os.Getpid())
		if os.WriteFile(tmp, b, 0o600) == nil { // not kept: it is tested again
			_ = os.Rename(tmp, cache)
		}
	}
	return a
}

func probeKVM(ctx context.Context) error {
	fd, err := unix.Open("/dev/kvm", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("/dev/kvm: %w", err)
	}
	unix.Close(fd)
	began := time.Now()
	if err := probe(ctx, "kvm"); err != nil {
		return fmt.Errorf("/dev/kvm opens but cannot run a guest: %w", err)
	}
	kvm := time.Since(began)
	began = time.Now()
	if err := probe(ctx, "tcg"); err != nil {
		return nil // nothing to compare with, and nothing else to choose
	}
	return slower(kvm, time.Since(began))
}

// slower refuses an accelerator that does not accelerate: where the hypervisor
// beneath lacks what hardware virtualization needs, KVM still runs a few
// instructions by emulating each, and an ordinary guest would not come up. Load
// slows both; a healthy KVM needs about the time of TCG for the firmware.
func slower(kvm, tcg time.Duration) error {
	if kvm <= 4*tcg+time.Second {
		return nil
	}
	return fmt.Errorf("/dev/kvm is slower than emulation: the test guest took %v, without it %v",
		kvm.Round(10*time.Millisecond), tcg.Round(10*time.Millisecond))
}

// probe runs the tiny guest under an accelerator.
func probe(ctx context.Context, accel string) error {
	dir, err := os.MkdirTemp("", "roseau-accel")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	disk := filepath.Join(dir, "disk")
	if err := os.WriteFile(disk, append(bootSector(), make([]byte, 1<<20)...), 0o600); err != nil {
		return err
	}
	// As the guests will run: a device that root alone can use is of no use.
	u, err := LookupUser(accel == "kvm")
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, Program, "-nodefaults", "-no-user-config", "-display", "none", "-machine", "q35",
		"-accel", accel, "-m", "32", "-no-reboot", "-device", "isa-debug-exit,iobase=0xf4,iosize=4",
		"-drive", "file="+disk+",format=raw,if=ide,snapshot=on")
	if os.Getuid() == 0 {
		for _, p := range []string{dir, disk} {
			if err := os.Chown(p, int(u.UID), int(u.GID)); err != nil {
				return err
			}
		}
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: u.UID, Gid: u.GID, Groups: u.Groups}}
	}
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	switch {
	case errors.As(err, &exit) && exit.ExitCode() == probeExit:
		return nil
	case ctx.Err() != nil:
		return fmt.Errorf("the test guest did not finish within %v", probeTimeout)
	case err == nil:
		return errors.New("the test guest ended without its signal")
	}
	line, _, _ := strings.Cut(strings.TrimSpace(string(out)), "\n")
	if line == "" {
		line = err.Error()
	}
	return errors.New(line)
}
