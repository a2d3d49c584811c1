package qemu

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"roseau/internal/base/errs"
)

func needQEMU(t *testing.T) {
	t.Helper()
	if _, err := exec.LookPath(Program); err != nil {
		t.Skip("no " + Program)
	}
}

// The probe itself must be right: TCG runs it everywhere.
func TestProbe(t *testing.T) {
	needQEMU(t)
	if err := probe(t.Context(), "tcg"); err != nil {
		t.Fatal(err)
	}
	if err := probe(t.Context(), "no-such-accelerator"); err == nil {
		t.Fatal("an unknown accelerator works")
	}
}

func TestSlower(t *testing.T) {
	if slower(300*time.Millisecond, 100*time.Millisecond) != nil || slower(3*time.Second, 100*time.Millisecond) == nil {
		t.Fatal("wrong verdict")
	}
}

func TestDetect(t *testing.T) {
	needQEMU(t)
	cache := filepath.Join(t.TempDir(), "accel.json")
	a := Detect(t.Context(), cache)
	t.Logf("%+v", a)
	if a.Name != "kvm" && a.Name != "tcg" || (a.Name == "tcg") != (a.Reason != "") {
		t.Fatalf("finding %+v", a)
	}
	began := time.Now()
	if b := Detect(t.Context(), cache); b != a || time.Since(began) > 100*time.Millisecond {
		t.Fatalf("from the cache: %+v", b)
	}
}

func TestProcess(t *testing.T) {
	needQEMU(t)
	dir := t.TempDir()
	mark := "guest=mark" + filepath.Base(dir)
	u, err := LookupUser(false)
	if err != nil {
		t.Fatal(err)
	}
	p, err := Start(Command{Argv: []string{"-nodefaults", "-no-user-config", "-display", "none", "-S", "-m", "16", "-name", mark},
		Log: filepath.Join(dir, "log"), User: u})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Signal(unix.SIGKILL)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	until := func(what string, ok func() bool) {
		t.Helper()
		for !ok() {
			select {
			case <-ctx.Done():
				b, _ := os.ReadFile(filepath.Join(dir, "log"))
				t.Fatalf("%s: %s", what, b)
			case <-time.After(Poll):
			}
		}
	}
	until("find it", func() bool { f := Find(mark); return len(f) == 1 && f[0] == p.PID })
	q, err := Attach(p.PID, p.Start)
	if err != nil {
		t.Fatal(err)
	}
	q.Signal(unix.SIGSTOP)
	until("freeze", p.Frozen)
	q.Signal(unix.SIGCONT)
	until("thaw", func() bool { return !p.Frozen() })
	if os.Getuid() == 0 {
		b, err := os.ReadFile("/proc/" + strconv.Itoa(p.PID) + "/status")
		if err != nil || strings.Contains(string(b), "\nUid:\t0\t") {
			t.Fatalf("runs as root: %v", err)
		}
	}
	if err := KillAll(ctx, []int{p.PID}); err != nil {
		t.Fatal(err)
	}
	<-p.Done()
	<-q.Done()
	if _, err := Attach(p.PID, p.Start); !errors.Is(err, errs.NotFound) {
		t.Fatalf("attach to a dead process: %v", err)
	}
	q.Signal(unix.SIGKILL) // no effect, no panic
}
