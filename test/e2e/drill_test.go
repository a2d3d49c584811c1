package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"roseau/internal/lab/labclient"
	"roseau/internal/unit"
)

// drillReport is what a script would read of report.json.
type drillReport struct {
	Tests []struct {
		Name    string         `json:"name"`
		Passed  bool           `json:"passed"`
		Figures map[string]any `json:"figures"`
		Failed  []string       `json:"failed"`
	} `json:"tests"`
}

// drill runs one, by its name and flags if any.
func drill(t *testing.T, limit time.Duration, args ...string) drillReport {
	t.Helper()
	dir := t.TempDir()
	out, err := cli(limit, append([]string{"drill", "run", "--report", dir}, args...)...)
	t.Log(out)
	var rep drillReport
	b, readErr := os.ReadFile(filepath.Join(dir, "report.json"))
	if readErr != nil {
		t.Fatalf("drill run: %v; no report: %v", err, readErr)
	}
	if e := json.Unmarshal(b, &rep); e != nil {
		t.Fatal(e)
	}
	if err != nil {
		t.Errorf("drill run: %v", err)
	}
	if len(rep.Tests) != 1 {
		t.Fatalf("%d tests in the report, want 1", len(rep.Tests))
	}
	return rep
}

// Drills once, with the figures that their reports must have. Not here: those of
// more nodes (space), of repetitions, and busy-migration, which measures the
// machine's speed and takes a minute.
func TestDrills(t *testing.T) {
	for _, d := range []struct {
		name    string
		figures []string
	}{
		{"live-migration", []string{"pings_sent", "pings_lost", "longest_gap_ms", "rtt_median_ms", "rtt_max_ms", "blackout_ms"}},
		{"node-failure", []string{"detected_ms", "restarted_ms", "service_back_ms", "writes_acked", "writes_lost", "vms_run_twice"}},
		{"disk-failure", []string{"io_errors", "longest_stall_ms", "degraded_seen", "rebuilt_bytes", "rebuild_ms", "writes_acked", "writes_lost", "vm_pauses", "vm_paused_ms"}},
		{"process-kill", []string{"node_killed_ms", "storage_killed_ms", "guard_killed_ms", "io_errors"}},
		{"control-plane", []string{"longest_stall_ms", "io_errors", "writes_lost"}},
		{"isolation", []string{"silent_ms", "restarted_ms", "vms_run_twice"}},
		{"network-cut", []string{"storage_changes_ms", "cluster_changes_ms", "storage_longest_stall_ms", "cluster_longest_stall_ms", "restarted_ms", "writes_acked", "writes_lost", "vms_run_twice"}},
		{"freeze", []string{"silent_ms", "restarted_ms", "service_back_ms", "writes_acked", "writes_lost", "vms_run_twice", "vm_pauses", "vm_paused_ms", "vm_restarts"}},
		{"drain", []string{"drain_ms", "failback_ms", "pings_lost", "vm_restarts", "writes_acked", "writes_lost"}},
		{"node-shutdown", []string{"shutdown_ms", "failback_ms", "longest_stall_ms", "vm_restarts", "writes_acked", "writes_lost"}},
		{"rolling-restart", []string{"took_ms", "nodes_restarted", "fewest_copies", "longest_stall_ms", "vm_restarts", "writes_acked", "writes_lost"}},
		{"cold-start", []string{"restarted_ms", "service_back_ms", "writes_acked", "writes_lost", "vms_run_twice", "vm_pauses", "vm_paused_ms"}},
	} {
		t.Run(d.name, func(t *testing.T) {
			rep := drill(t, 15*time.Minute, d.name)
			for _, f := range d.figures {
				if _, ok := rep.Tests[0].Figures[f]; !ok {
					t.Errorf("figure %s is not in the report", f)
				}
			}
			if !rep.Tests[0].Passed {
				t.Errorf("missed: %v", rep.Tests[0].Failed)
			}
			noGuardIsLeft(t)
		})
	}
}

// Drills that are run by `make e2e` alone.
func TestLongDrills(t *testing.T) {
	long(t)
	for _, name := range []string{"sick-link", "without-etcd", "packet-loss"} {
		t.Run(name, func(t *testing.T) {
			if rep := drill(t, 15*time.Minute, name); !rep.Tests[0].Passed {
				t.Errorf("missed: %v", rep.Tests[0].Failed)
			}
			noGuardIsLeft(t)
		})
	}
}

// noGuardIsLeft waits until no node has a guard: the drills delete their VMs, also
// while a node that ran one is cut off.
func noGuardIsLeft(t *testing.T) {
	t.Helper()
	var left []string
	for end := time.Now().Add(time.Minute); ; time.Sleep(500 * time.Millisecond) {
		var st labclient.Status
		decode(t, must(t, time.Minute, "lab", "status", "--name", labName, "-o", "json"), &st)
		left = nil
		for _, n := range st.Machines() {
			for _, u := range n.Units {
				if _, guard := u.Name.VMID(); guard && u.State != unit.Stopped {
					left = append(left, fmt.Sprintf("%s on %s is %s", u.Name, n.Name, u.State))
				}
			}
		}
		if len(left) == 0 {
			return
		}
		if time.Now().After(end) {
			break
		}
	}
	t.Errorf("guards are left behind: %v", left)
}

// Two of three nodes at once, and one after the other: on a lab with a witness
// of its own, while the other lab waits for its slow disk.
func TestDoubleFailure(t *testing.T) {
	t.Parallel()
	const lab = "e2e-witness"
	if out, err := cli(5*time.Minute, "lab", "up", "--name", lab, "--witness", "--disks", "2"); err != nil {
		t.Fatalf("lab up: %v\n%s", err, out)
	}
	defer func() {
		if out, err := cli(2*time.Minute, "lab", "down", "--name", lab); err != nil {
			t.Errorf("lab down: %v\n%s", err, out)
		}
	}()
	if rep := drill(t, 15*time.Minute, "--name", lab, "--context", lab, "double-failure"); !rep.Tests[0].Passed {
		t.Errorf("missed: %v", rep.Tests[0].Failed)
	}
}
