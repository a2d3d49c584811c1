package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// Two copies of a volume miss writes, one after the other, and the node of the last
// one is gone: of the older ones that with more becomes the truth by an operator's
// word. What is read is what it had; the copy that was given up comes back, is never
// mixed in, and another one is built.
func TestVolumeForce(t *testing.T) {
	long(t)
	heals(t)
	must(t, time.Minute, "volume", "create", "forced", "--size", "64MiB")
	defer again(t, "volume", "delete", "forced", "--confirm", "forced")
	dir := t.TempDir()
	image := func(name string) string { return randomFile(t, filepath.Join(dir, name), 64) }
	older, newer, newest, back := image("older"), image("newer"), image("newest"), filepath.Join(dir, "back")
	write := func(node, from string) {
		t.Helper()
		uri := serveOn(t, node, "forced")
		tool(t, "nbdcopy", "--flush", from, uri)
		again(t, "volume", "unserve", "forced")
	}
	holds := func(node, want string) {
		t.Helper()
		uri := serveOn(t, node, "forced")
		tool(t, "nbdcopy", uri, back)
		tool(t, "cmp", want, back)
		os.Remove(back)
		again(t, "volume", "unserve", "forced")
	}
	given := map[string]string{} // disk of each node
	for _, c := range copiesOf(t, "forced") {
		given[c.Node] = c.Disk
	}
	write("n1", older)
	storage := func(verb, node string) {
		must(t, time.Minute, "lab", "service", verb, node, "storage", "--name", labName)
	}
	storage("stop", "n3")
	write("n1", newer)
	storage("stop", "n2")
	write("n1", newest)
	refused(t, exitConflict, []string{"in-sync copies can be reached", given["n1"]}, "volume", "force", "forced", "--confirm", "forced")
	must(t, time.Minute, "lab", "node", "cut", "n1", "--name", labName)
	storage("start", "n2")
	storage("start", "n3")

	dry := again(t, "volume", "force", "forced", "--dry-run")
	for _, w := range []string{given["n1"] + " on n1 cannot be reached", given["n2"] + " on n2 takes over"} {
		if !strings.Contains(dry, w) {
			t.Errorf("the dry run does not say %q:\n%s", w, dry)
		}
	}
	refused(t, exitInvalid, []string{"named once", "--confirm forced"}, "volume", "force", "forced", "--confirm", "another")
	if out := again(t, "volume", "force", "forced", "--confirm", "forced"); !strings.Contains(out, "goes on without") {
		t.Errorf("force: %s", out)
	}
	holds("n2", newer)
	write("n3", older)

	must(t, time.Minute, "lab", "node", "restore", "n1", "--name", labName)
	nodesReady(t)
	holds("n3", older)
	eventually(t, 3*time.Minute, "three copies", func() bool { return inSync(t, "forced") })
	for _, c := range copiesOf(t, "forced") {
		if c.Disk == given["n1"] {
			t.Errorf("the copy that was given up is back in: %+v", c)
		}
	}
	for _, node := range []string{"n1", "n2", "n3"} {
		holds(node, older)
	}
	whole(t)
}
