package unit

import (
	"errors"
	"flag"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"roseau/internal/base/errs"
	"roseau/internal/base/ids"
)

var update = flag.Bool("update", false, "write packaging/*.service")

// TestServiceFiles keeps packaging/ what the Go values say.
func TestServiceFiles(t *testing.T) {
	const dir = "../../packaging"
	want := map[string]bool{}
	for _, u := range append(Templates(DefaultBinary), WitnessTemplate(DefaultBinary)) {
		want[u.FileName()] = true
		path := filepath.Join(dir, u.FileName())
		if *update {
			if err := os.MkdirAll(dir, 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(path, []byte(u.ServiceFile()), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		got, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if string(got) != u.ServiceFile() {
			t.Errorf("%s differs from the Go value; run go test ./internal/unit -update and read the change:\n%s", path, u.ServiceFile())
		}
	}
	files, _ := filepath.Glob(filepath.Join(dir, "*.service"))
	for _, f := range files {
		if !want[filepath.Base(f)] {
			t.Errorf("%s has no Go value", f)
		}
	}
}

// TestGuardUnit pins what the safety rules need of a guard's supervisor.
func TestGuardUnit(t *testing.T) {
	vm := ids.New()
	u, err := Find(Templates("/x/roseau"), VM(vm))
	if err != nil {
		t.Fatal(err)
	}
	if got := strings.Join(u.Argv, " "); got != "/x/roseau vmguard "+vm.String() {
		t.Errorf("argv %q", got)
	}
	if got := strings.Join(u.OnUnexpectedExit, " "); got != "/x/roseau vmguard --stopped "+vm.String() {
		t.Errorf("hook %q: nothing would stop a QEMU without guard", got)
	}
	if u.KillMode != KillProcess {
		t.Error("QEMU would die with its guard")
	}
	if u.Watchdog != 1500*time.Millisecond {
		t.Error("the silence of a hung guard is bounded by 1.5 s")
	}
	if !u.Restarts(false) || u.Restarts(true) {
		t.Error("a guard comes back after a crash and not after its VM's end")
	}
	if d := u.Delay(0); d > 200*time.Millisecond {
		t.Errorf("first restart after %v: the budget for a guard to be back is 1 s", d)
	}
	if id, ok := u.Name.VMID(); !ok || id != vm {
		t.Errorf("VMID of %s: %v", u.Name, id)
	}
	if _, ok := u.Name.VolumeID(); ok {
		t.Error("a VM's unit is no volume's")
	}
}

func TestFind(t *testing.T) {
	all := Templates(DefaultBinary)
	for name, kind := range map[Name]error{
		Node: nil, "roseau-vm@a": nil,
		"roseau-vm@": errs.Invalid, "roseau-vm@../x": errs.Invalid, "roseau-vm@..": errs.Invalid,
		"roseau-x": errs.NotFound, "roseau-vm": errs.NotFound, "roseau-node@a": errs.NotFound, "": errs.NotFound,
	} {
		if _, err := Find(all, name); errs.Kind(err) != kind {
			t.Errorf("Find(%q) = %v, want kind %v", name, err, kind)
		}
	}
	if all[2].Argv[2] != "%i" {
		t.Error("Find changed the template")
	}
}

func TestDelay(t *testing.T) {
	u := Unit{BackoffMin: 100 * time.Millisecond, BackoffMax: time.Second}
	for n, want := range []time.Duration{100, 200, 400, 800, 1000, 1000} {
		if got := u.Delay(n); got != want*time.Millisecond {
			t.Errorf("Delay(%d) = %v", n, got)
		}
	}
	if got := (Unit{BackoffMin: time.Second}).Delay(3); got != time.Second {
		t.Errorf("without a maximum: %v", got)
	}
	if got := (Unit{}).Delay(1000); got != 0 {
		t.Errorf("without back-off: %v", got)
	}
}

func TestNotifier(t *testing.T) {
	path := filepath.Join(t.TempDir(), "n")
	server, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	t.Setenv("NOTIFY_SOCKET", path)
	t.Setenv("WATCHDOG_USEC", "1500000")
	n, err := NewNotifier()
	if err != nil {
		t.Fatal(err)
	}
	defer n.Close()
	if n.WatchdogInterval() != 500*time.Millisecond {
		t.Errorf("interval %v", n.WatchdogInterval())
	}
	if os.Getenv("NOTIFY_SOCKET") != "" {
		t.Error("children inherit the socket")
	}
	if err := errors.Join(n.Ready(), n.Watchdog(), n.Status("two\nlines")); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 100)
	for _, want := range []string{"READY=1", "WATCHDOG=1", "STATUS=two lines"} {
		size, err := server.Read(buf)
		if err != nil || string(buf[:size]) != want {
			t.Errorf("read %q, %v; want %q", buf[:size], err, want)
		}
	}
	silent, err := NewNotifier() // without a supervisor
	if err != nil || silent.Ready() != nil || silent.WatchdogInterval() != 0 || silent.Close() != nil {
		t.Error("a notifier without supervisor must do nothing")
	}
}

func TestSystemdStatus(t *testing.T) {
	got := systemdStatus(Node, map[string]any{
		"ActiveState": "active", "SubState": "running", "MainPID": uint32(7), "NRestarts": uint32(2),
		"StateChangeTimestamp": uint64(1_000_000), "Result": "signal",
	})
	want := Status{Name: Node, State: Running, PID: 7, Ready: true, Restarts: 2, Since: time.UnixMicro(1_000_000), LastExit: "signal"}
	if got != want {
		t.Errorf("got %+v", got)
	}
	for active, state := range map[string]State{"inactive": Stopped, "failed": Failed, "deactivating": Stopping} {
		if got := systemdStatus(Node, map[string]any{"ActiveState": active}); got.State != state {
			t.Errorf("%s is %s", active, got.State)
		}
	}
	if got := systemdStatus(Node, map[string]any{"ActiveState": "activating", "SubState": "auto-restart"}); got.State != Restarting {
		t.Errorf("auto-restart is %s", got.State)
	}
}
