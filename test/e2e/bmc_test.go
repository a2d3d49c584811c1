package e2e

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

const (
	exitUnavailable = 5
	exitDenied      = 8
)

func powerOf(t *testing.T, node string) string {
	t.Helper()
	var p struct{ Power string }
	decode(t, must(t, time.Minute, "node", "power", "status", node, "-o", "json"), &p)
	return p.Power
}

// waitNode polls until a node's session is there.
func waitNode(t *testing.T, node string) {
	t.Helper()
	for end := time.Now().Add(2 * time.Minute); ; {
		var n struct {
			Status struct {
				Ready bool `json:"ready"`
			} `json:"status"`
		}
		decode(t, must(t, time.Minute, "node", "show", node, "-o", "json"), &n)
		if n.Status.Ready {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("node %s does not return", node)
		}
		time.Sleep(200 * time.Millisecond) // polls the API
	}
}

// awayFromFirst returns the node of a running machine, after moving it off n1 if
// it is there: n1 is the one that the command line asks first, and answers for the
// others while they have no power.
func awayFromFirst(t *testing.T, vm string) string {
	t.Helper()
	node := waitVM(t, vm, "running", func(v vmSheet) bool { return v.Status.State == "running" }).Status.Node
	if node == "n1" {
		must(t, 2*time.Minute, "vm", "migrate", vm, "n2")
		node = waitVM(t, vm, "running on n2", func(v vmSheet) bool { return v.Status.State == "running" && v.Status.Node == "n2" }).Status.Node
	}
	return node
}

// A node that loses its power by its BMC is a lost node: its machine is restarted
// by lease. With power it returns. The BMC is asked for nothing in between.
func TestBMCPowersANode(t *testing.T) {
	must(t, 2*time.Minute, "vm", "create", "powered", "--memory", "64MiB", "--disk", "size=64MiB", "--start")
	defer func() {
		must(t, time.Minute, "vm", "stop", "powered", "--force")
		must(t, time.Minute, "vm", "delete", "powered", "--confirm", "powered")
	}()
	node := awayFromFirst(t, "powered")
	before := showVM(t, "powered")
	refused(t, exitInvalid, []string{"named once", "--confirm"}, "node", "power", "off", node)
	if out := must(t, time.Minute, "node", "bmc", "test", node); !strings.Contains(out, "power on") || !strings.Contains(out, "its system is this node") {
		t.Errorf("test: %s", out)
	}
	must(t, 2*time.Minute, "node", "power", "off", node, "--confirm", node)
	if p := powerOf(t, node); p != "off" {
		t.Errorf("power is %s", p)
	}
	if out := must(t, time.Minute, "node", "bmc", "show", node); !strings.Contains(out, "known off") {
		t.Errorf("show: %s", out)
	}
	after := waitVM(t, "powered", "running elsewhere", func(v vmSheet) bool { return v.Status.State == "running" && v.Status.Node != node })
	if after.Status.Run == before.Status.Run {
		t.Error("it runs elsewhere under the same run")
	}
	must(t, 2*time.Minute, "node", "power", "on", node)
	waitNode(t, node)
	if p := powerOf(t, node); p != "on" {
		t.Errorf("power is %s", p)
	}
	if out := must(t, time.Minute, "node", "bmc", "show", node); strings.Contains(out, "known off") {
		t.Errorf("it has power, and is known off: %s", out)
	}
	if out := must(t, time.Minute, "node", "locate", node); !strings.Contains(out, "is on") {
		t.Errorf("locate: %s", out)
	}
	must(t, time.Minute, "node", "locate", node, "--off")
	must(t, time.Minute, "node", "bmc", "boot", node, "pxe")
	if out := must(t, time.Minute, "node", "bmc", "sensors", node); !strings.Contains(out, "Power consumption") {
		t.Errorf("sensors: %s", out)
	}
}

// Whatever is wrong with a BMC is said, and no password is said with it.
func TestBMCRefusals(t *testing.T) {
	bad := filepath.Join(t.TempDir(), "password")
	if err := os.WriteFile(bad, []byte("not-the-password\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	b := labNode(t, "n2").BMC
	good, err := os.ReadFile(b.PasswordFile)
	if err != nil {
		t.Fatal(err)
	}
	set := func(args ...string) []string {
		return append([]string{"node", "bmc", "set", "n2", "--address", b.Address, "--user", b.User}, args...)
	}
	refused(t, exitDenied, []string{"wrong user or password"}, set("--password-file", bad)...)
	refused(t, exitInvalid, []string{"--password-file"}, set()...)
	refused(t, exitDenied, []string{"another machine", "UUID"}, "node", "bmc", "set", "n3", "--address", b.Address, "--user", b.User, "--password-file", b.PasswordFile)
	refused(t, exitUnavailable, []string{"10.203.0.99"}, "node", "bmc", "set", "n2", "--address", "10.203.0.99", "--user", b.User, "--password-file", b.PasswordFile)
	must(t, time.Minute, "lab", "bmc", "renew", "n2", "--name", labName)
	renewed := labNode(t, "n2").BMC.Fingerprint
	refused(t, exitDenied, []string{b.Fingerprint, renewed, "no password was sent"}, "node", "bmc", "test", "n2")
	refused(t, exitDenied, []string{b.Fingerprint, renewed}, set("--password-file", b.PasswordFile)...)
	if out := must(t, time.Minute, set("--password-file", b.PasswordFile, "--fingerprint", renewed)...); !strings.Contains(out, renewed) {
		t.Errorf("set: %s", out)
	}
	must(t, time.Minute, "node", "bmc", "test", "n2")
	out := must(t, time.Minute, "node", "bmc", "show", "n2", "-o", "json") + must(t, time.Minute, "secret", "list", "-o", "json") + must(t, time.Minute, "events")
	if strings.Contains(out, strings.TrimSpace(string(good))) {
		t.Error("the password came out")
	}
	var secrets []struct {
		Kind    string   `json:"kind"`
		Readers []string `json:"readers"`
		Missing []string `json:"missing"`
	}
	for end := time.Now().Add(30 * time.Second); ; time.Sleep(200 * time.Millisecond) {
		decode(t, must(t, time.Minute, "secret", "list", "-o", "json"), &secrets)
		whole := len(secrets) == 3
		for _, s := range secrets {
			whole = whole && s.Kind == "bmc" && len(s.Readers) == 3 && len(s.Missing) == 0
		}
		if whole {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("secrets: %+v", secrets)
		}
	}
}

// An unreachable BMC delays no restart: the lease is the fence.
func TestUnreachableBMCDelaysNothing(t *testing.T) {
	must(t, 2*time.Minute, "vm", "create", "unfenced", "--memory", "64MiB", "--disk", "size=64MiB", "--start")
	defer func() {
		must(t, time.Minute, "vm", "stop", "unfenced", "--force")
		must(t, time.Minute, "vm", "delete", "unfenced", "--confirm", "unfenced")
	}()
	node := awayFromFirst(t, "unfenced")
	must(t, time.Minute, "lab", "bmc", "cut", node, "--name", labName)
	defer func() { must(t, time.Minute, "lab", "bmc", "restore", node, "--name", labName) }()
	must(t, time.Minute, "lab", "node", "cut", node, "--name", labName)
	cut := time.Now()
	waitVM(t, "unfenced", "running elsewhere", func(v vmSheet) bool { return v.Status.State == "running" && v.Status.Node != node })
	// The worst case of the budget is 6 s; a BMC that is waited for costs 10 s and
	// more on top. The limit leaves room for a busy machine.
	if took := time.Since(cut); took > 12*time.Second {
		t.Errorf("restarted after %s", took)
	} else {
		t.Logf("restarted after %s", took)
	}
	// The look after the fact says that the BMC does not help.
	for end := time.Now().Add(90 * time.Second); ; time.Sleep(500 * time.Millisecond) {
		out := must(t, time.Minute, "node", "bmc", "show", node, "-o", "json")
		var s struct {
			Report *struct{ Error string } `json:"report"`
		}
		if err := json.Unmarshal([]byte(out), &s); err != nil {
			t.Fatal(err)
		}
		if s.Report != nil && s.Report.Error != "" {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("nobody looked at the lost node: %s", out)
		}
	}
	must(t, time.Minute, "lab", "node", "restore", node, "--name", labName)
	waitNode(t, node)
}
