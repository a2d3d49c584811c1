package e2e

import (
	"path/filepath"
	"testing"
	"time"
)

// A volume goes back to a snapshot and forth to a newer one, with a node away
// that misses it; a VM's volumes go back together.
func TestRollback(t *testing.T) {
	must(t, time.Minute, "volume", "create", "roll", "--size", "64MiB")
	defer must(t, time.Minute, "volume", "delete", "roll", "--confirm", "roll")
	dir := t.TempDir()
	image := func(name string) string { return randomFile(t, filepath.Join(dir, name), 64) }
	a, b, back := image("a"), image("b"), filepath.Join(dir, "back")
	holds := func(vol, node, want string) {
		t.Helper()
		uri := serveOn(t, node, vol)
		tool(t, "nbdcopy", uri, back)
		tool(t, "cmp", want, back)
		must(t, time.Minute, "volume", "unserve", vol)
	}
	write := func(vol, from string) {
		t.Helper()
		uri := serveOn(t, "n1", vol)
		tool(t, "nbdcopy", "--flush", from, uri)
		must(t, time.Minute, "volume", "unserve", vol)
	}
	write("roll", a)
	must(t, time.Minute, "volume", "snapshot", "create", "roll", "first")
	write("roll", b)
	must(t, time.Minute, "volume", "snapshot", "create", "roll", "second")
	serveOn(t, "n2", "roll")
	refused(t, exitConflict, []string{"is open for serve"}, "volume", "snapshot", "rollback", "roll", "first", "--confirm", "roll")
	must(t, time.Minute, "volume", "unserve", "roll")
	refused(t, 2, []string{"named once"}, "volume", "snapshot", "rollback", "roll", "first", "--confirm", "first")
	refused(t, 3, []string{"not found"}, "volume", "snapshot", "rollback", "roll", "third", "--confirm", "roll")

	must(t, time.Minute, "lab", "node", "cut", "n3", "--name", labName)
	must(t, 2*time.Minute, "volume", "snapshot", "rollback", "roll", "first", "--confirm", "roll")
	must(t, time.Minute, "lab", "node", "restore", "n3", "--name", labName)
	eventually(t, 2*time.Minute, "three copies in sync", func() bool { return inSync(t, "roll") })
	holds("roll", "n3", a)
	must(t, 2*time.Minute, "volume", "snapshot", "rollback", "roll", "second", "--confirm", "roll")
	holds("roll", "n1", b)

	must(t, 2*time.Minute, "vm", "create", "both", "--memory", "64MiB", "--disk", "size=64MiB", "--disk", "size=64MiB")
	defer must(t, time.Minute, "vm", "delete", "both", "--confirm", "both")
	var vm struct {
		Volumes []struct {
			Name string `json:"name"`
		} `json:"volumes"`
	}
	decode(t, must(t, time.Minute, "vm", "show", "both", "-o", "json"), &vm)
	if len(vm.Volumes) < 2 {
		t.Fatalf("volumes of the VM: %+v", vm.Volumes)
	}
	one, two := vm.Volumes[len(vm.Volumes)-2].Name, vm.Volumes[len(vm.Volumes)-1].Name
	write(one, a)
	write(two, b)
	must(t, time.Minute, "vm", "start", "both")
	waitVM(t, "both", "running", func(v vmSheet) bool { return v.Status.State == "running" })
	must(t, time.Minute, "vm", "snapshot", "create", "both", "running")
	refused(t, exitConflict, []string{`has a snapshot "running"`}, "vm", "snapshot", "create", "both", "running")
	refused(t, exitConflict, []string{"vm both has it"}, "vm", "snapshot", "rollback", "both", "running", "--confirm", "both")
	must(t, time.Minute, "vm", "stop", "both", "--force")
	waitVM(t, "both", "stopped", func(v vmSheet) bool { return v.Status.State == "stopped" })
	write(one, b)
	write(two, a)
	must(t, time.Minute, "vm", "snapshot", "create", "both", "stopped")
	var list []struct {
		Name    string   `json:"name"`
		Volumes []string `json:"volumes"`
		Missing []string `json:"missing"`
	}
	decode(t, must(t, time.Minute, "vm", "snapshot", "list", "both", "-o", "json"), &list)
	if len(list) != 2 || len(list[0].Volumes) != len(vm.Volumes) || len(list[1].Missing) > 0 {
		t.Errorf("snapshots of the VM: %+v", list)
	}
	must(t, 2*time.Minute, "vm", "snapshot", "rollback", "both", "running", "--confirm", "both")
	holds(one, "n1", a)
	holds(two, "n2", b)
	must(t, time.Minute, "vm", "snapshot", "delete", "both", "running", "--confirm", "running")
	must(t, 2*time.Minute, "vm", "snapshot", "rollback", "both", "stopped", "--confirm", "both")
	holds(one, "n2", b)
	must(t, time.Minute, "vm", "snapshot", "delete", "both", "stopped", "--confirm", "stopped")
	if out := must(t, time.Minute, "vm", "snapshot", "list", "both", "-o", "json"); out != "[]\n" {
		t.Errorf("snapshots that were deleted: %s", out)
	}
}
