package e2e

import (
	"compress/gzip"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"
)

// Exit codes, as `roseau --help` and docs promise them.
const (
	exitInvalid   = 2
	exitNotFound  = 3
	exitConflict  = 4
	exitExhausted = 6
)

// Wrong input gets an error that names the thing, the value and the remedy, the
// exit code of its kind, and leaves nothing half-made.
func TestWrongInput(t *testing.T) {
	dir := t.TempDir()
	packed, big, small := filepath.Join(dir, "x.gz"), filepath.Join(dir, "big.qcow2"), filepath.Join(dir, "s.qcow2")
	f, err := os.Create(packed)
	if err != nil {
		t.Fatal(err)
	}
	gz := gzip.NewWriter(f)
	gz.Write(make([]byte, 1<<20))
	gz.Close()
	f.Close()
	for _, c := range [][]string{{"create", "-q", "-f", "qcow2", big, "500G"}, {"create", "-q", "-f", "qcow2", small, "32M"}} {
		if out, err := exec.Command("qemu-img", c...).CombinedOutput(); err != nil {
			t.Fatalf("qemu-img: %v: %s", err, out)
		}
	}
	refused(t, exitInvalid, []string{"gzip", "unpack"}, "image", "import", packed, "--name", "packed")
	refused(t, exitExhausted, []string{"500GiB", "pool1"}, "image", "import", big, "--name", "big")
	must(t, time.Minute, "image", "import", small, "--name", "twice")
	refused(t, exitConflict, []string{"twice", "taken", "delete"}, "image", "import", small, "--name", "twice")
	must(t, time.Minute, "image", "delete", "twice", "--confirm", "twice")

	must(t, time.Minute, "volume", "create", "wrong-input", "--size", "1GiB")
	refused(t, exitConflict, []string{"wrong-input", "taken"}, "volume", "create", "wrong-input", "--size", "1GiB")
	must(t, time.Minute, "volume", "delete", "wrong-input", "--confirm", "wrong-input")
	refused(t, exitInvalid, []string{"V_1", "a-z"}, "volume", "create", "V_1", "--size", "1GiB")
	refused(t, exitInvalid, []string{"abc", "8GiB"}, "volume", "create", "v", "--size", "abc")
	refused(t, exitInvalid, []string{"100TiB"}, "volume", "create", "v", "--size", "100TiB")

	refused(t, exitInvalid, []string{"NODE/PATH"}, "disk", "claim", "n1")
	refused(t, exitNotFound, []string{"n9"}, "disk", "claim", "n9/sdb")
	refused(t, exitNotFound, []string{"nope", "vm list"}, "vm", "show", "nope")
	refused(t, exitInvalid, []string{"memory", "32MiB"}, "vm", "create", "x", "--memory", "1")
	refused(t, exitExhausted, []string{"p2", "claim"}, "pool", "create", "p2")
	refused(t, exitInvalid, []string{"frobnicate"}, "frobnicate")

	// A disk in use: every disk of the lab is claimed.
	refused(t, exitConflict, []string{"d1", "claimed"}, "disk", "wipe", "n1/d1", "--confirm", "n1/d1")
	refused(t, exitInvalid, []string{"named once", "--confirm"}, "disk", "wipe", "n1/d1")

	// Maintenance: nothing of this may begin.
	refused(t, exitNotFound, []string{"n9"}, "node", "drain", "n9")
	refused(t, exitNotFound, []string{"n9"}, "node", "reboot", "n9")
	refused(t, exitConflict, []string{"n2", "not drained"}, "node", "undrain", "n2")
	refused(t, exitInvalid, []string{"--rolling"}, "cluster", "restart")
	refused(t, exitConflict, []string{"there is none"}, "cluster", "restart", "--cancel")
	refused(t, exitInvalid, []string{"confirm", labName}, "cluster", "shutdown", "--confirm", "another")
	must(t, time.Minute, "node", "drain", "n2")
	must(t, time.Minute, "node", "drain", "n3")
	refused(t, exitConflict, []string{"last node that takes VMs", "n2 is drained", "undrain"}, "node", "drain", "n1")
	refused(t, exitConflict, []string{"last node that takes VMs", "cluster shutdown"}, "node", "shutdown", "n1")
	must(t, time.Minute, "node", "undrain", "n2")
	must(t, time.Minute, "node", "undrain", "n3")

	for _, noun := range []string{"image", "volume", "vm", "task"} {
		out := must(t, time.Minute, noun, "list", "-o", "json")
		var list []struct {
			Name  string `json:"name"`
			State string `json:"state"`
		}
		decode(t, out, &list)
		for _, o := range list {
			if noun != "task" {
				t.Errorf("%s %s was left behind", noun, o.Name)
			} else if o.State == "running" {
				t.Errorf("task %s still runs", o.Name)
			}
		}
	}
}
