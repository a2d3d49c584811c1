package e2e

import (
	"strings"
	"testing"
	"time"
)

type vmSheet struct {
	Status struct {
		State     string   `json:"state"`
		Node      string   `json:"node"`
		Run       string   `json:"run"`
		Pauses    []string `json:"pauses"`
		Migration *struct {
			Error string `json:"error"`
			Via   string `json:"via"`
		} `json:"migration"`
	} `json:"status"`
}

func showVM(t *testing.T, name string) (v vmSheet) {
	t.Helper()
	decode(t, must(t, time.Minute, "vm", "show", name, "-o", "json"), &v)
	return v
}

// waitVM polls a VM until ok.
func waitVM(t *testing.T, name, what string, ok func(vmSheet) bool) vmSheet {
	t.Helper()
	deadline := time.Now().Add(time.Minute)
	for {
		v := showVM(t, name)
		if ok(v) {
			return v
		}
		if time.Now().After(deadline) {
			t.Fatalf("vm %s: not %s: %+v", name, what, v.Status)
		}
		time.Sleep(100 * time.Millisecond) // polls the API
	}
}

// A migration that is called off leaves the VM running where it was, the same
// run of it; the buttons work.
func TestMigrationIsCalledOff(t *testing.T) {
	must(t, 2*time.Minute, "vm", "create", "stays", "--memory", "64MiB", "--disk", "size=64MiB", "--start")
	defer func() {
		must(t, time.Minute, "vm", "stop", "stays", "--force")
		must(t, time.Minute, "vm", "delete", "stays", "--confirm", "stays")
	}()
	before := waitVM(t, "stays", "running", func(v vmSheet) bool { return v.Status.State == "running" })
	if out := must(t, time.Minute, "vm", "migrate", "stays", "--dry-run"); !strings.Contains(out, "would move from "+before.Status.Node) {
		t.Errorf("dry run: %s", out)
	}
	refused(t, exitConflict, []string{"does not move"}, "vm", "migrate", "stays", "--cancel")
	type result struct {
		out string
		err error
	}
	moved := make(chan result, 1)
	go func() {
		out, err := cli(2*time.Minute, "vm", "migrate", "stays", "--bandwidth", "128KiB", "--network", "cluster")
		moved <- result{out, err}
	}()
	waitVM(t, "stays", "on its way", func(v vmSheet) bool {
		return v.Status.State == "migrating" && v.Status.Migration != nil && strings.HasPrefix(v.Status.Migration.Via, "10.203.")
	})
	if out := must(t, time.Minute, "vm", "migrate", "stays", "--cancel"); !strings.Contains(out, "stays where it is") {
		t.Errorf("cancel: %s", out)
	}
	if r := <-moved; r.err == nil {
		t.Errorf("a migration that was called off succeeds: %s", r.out)
	}
	after := waitVM(t, "stays", "running again", func(v vmSheet) bool { return v.Status.State == "running" })
	if after.Status.Node != before.Status.Node || after.Status.Run != before.Status.Run {
		t.Errorf("it ran on %s as %s, now on %s as %s", before.Status.Node, before.Status.Run, after.Status.Node, after.Status.Run)
	}
	must(t, time.Minute, "vm", "pause", "stays")
	waitVM(t, "stays", "paused", func(v vmSheet) bool { return v.Status.State == "paused" && len(v.Status.Pauses) == 1 })
	must(t, time.Minute, "vm", "resume", "stays")
	waitVM(t, "stays", "running", func(v vmSheet) bool { return v.Status.State == "running" })
}
