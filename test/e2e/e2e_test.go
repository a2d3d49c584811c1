// Package e2e runs the product as a user does: one lab, the command line, the
// drills, wrong input. It needs root and ROSEAU_E2E=1; `make e2e` and
// `make test` set it.
package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// labName keeps the test's lab apart from one that a person has up.
const labName = "e2e"

var (
	roseau string
	goHome []string // where go keeps what it built, for tests that build: $HOME is another one here
)

func TestMain(m *testing.M) {
	if os.Getenv(takerEnv) != "" {
		if err := takerMain(os.Stdin, os.Stdout); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	if os.Getenv("ROSEAU_E2E") == "" {
		fmt.Println("e2e: skipped: it needs root and a lab; `make e2e` runs it")
		os.Exit(0)
	}
	os.Exit(run(m))
}

func run(m *testing.M) int {
	root, err := filepath.Abs(filepath.Join("..", ".."))
	if err != nil {
		fmt.Println(err)
		return 1
	}
	roseau = filepath.Join(root, "bin", "roseau")
	for _, name := range []string{"GOCACHE", "GOMODCACHE"} {
		if dir, err := exec.Command("go", "env", name).Output(); err == nil {
			goHome = append(goHome, name+"="+strings.TrimSpace(string(dir)))
		}
	}
	home, err := os.MkdirTemp("", "roseau-e2e-")
	if err != nil {
		fmt.Println(err)
		return 1
	}
	defer os.RemoveAll(home)
	os.Setenv("ROSEAU_LAB_DIR", filepath.Join(home, "labs"))
	os.Setenv("XDG_CONFIG_HOME", filepath.Join(home, "config"))
	os.Setenv("XDG_CACHE_HOME", filepath.Join(root, ".cache"))
	os.Setenv("HOME", home)
	os.Setenv("ROSEAU_CONTEXT", labName) // also while a test has a second lab
	before := traces()
	if out, err := cli(5*time.Minute, "lab", "up", "--name", labName); err != nil {
		fmt.Printf("lab up: %v\n%s\n", err, out)
		keepLogs(home, root)
		cli(2*time.Minute, "lab", "down", "--name", labName)
		return 1
	}
	code := m.Run()
	if code != 0 {
		keepLogs(home, root)
	}
	if out, err := cli(2*time.Minute, "lab", "down", "--name", labName); err != nil {
		fmt.Printf("lab down: %v\n%s\n", err, out)
		code = 1
	}
	if left := leftOver(before); left != "" {
		fmt.Printf("lab down left behind:\n%s\n", left)
		code = 1
	}
	return code
}

// keepLogs copies the nodes' logs to .cache/e2e-logs for whoever looks into a
// failure.
func keepLogs(home, root string) {
	to := filepath.Join(root, ".cache", "e2e-logs")
	os.RemoveAll(to)
	labDir := filepath.Join(home, "labs", labName)
	logs, _ := filepath.Glob(filepath.Join(labDir, "nodes", "*", "log", "*"))
	daemon, _ := filepath.Glob(filepath.Join(labDir, "*.log"))
	for _, l := range append(logs, daemon...) {
		rel, _ := filepath.Rel(labDir, l)
		os.MkdirAll(filepath.Dir(filepath.Join(to, rel)), 0o755)
		if b, err := os.ReadFile(l); err == nil {
			os.WriteFile(filepath.Join(to, rel), b, 0o644)
		}
	}
	fmt.Println("e2e: the nodes' logs are in .cache/e2e-logs")
}

// traces are what a lab could leave on the machine.
func traces() map[string]bool {
	set := map[string]bool{}
	for _, cmd := range [][]string{{"ip", "-o", "link"}, {"ip", "netns", "list"}} {
		out, _ := exec.Command(cmd[0], cmd[1:]...).Output()
		for _, l := range strings.Split(string(out), "\n") {
			if f := strings.Fields(l); len(f) > 1 {
				set[cmd[len(cmd)-1]+" "+f[0]+" "+f[1]] = true
			}
		}
	}
	mounts, _ := os.ReadFile("/proc/self/mounts")
	for _, l := range strings.Split(string(mounts), "\n") {
		if f := strings.Fields(l); len(f) > 1 {
			set["mount "+f[1]] = true
		}
	}
	for _, g := range cgroups() {
		set["cgroup "+g] = true
	}
	procs, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, p := range procs {
		b, err := os.ReadFile(p)
		if err == nil && (bytes.HasPrefix(b, []byte(roseau+"\x00")) || bytes.Contains(b, []byte("/run/roseau/"))) {
			set["process "+filepath.Dir(p)+" "+strings.ReplaceAll(string(b), "\x00", " ")] = true
		}
	}
	return set
}

// cgroups are the control groups of the test's lab.
func cgroups() (dirs []string) {
	_ = filepath.WalkDir("/sys/fs/cgroup", func(p string, d os.DirEntry, err error) error {
		if err == nil && d.IsDir() && strings.Contains(p, "/roseau-lab-"+labName+"-") {
			dirs = append(dirs, p)
		}
		return nil // groups of others come and go
	})
	return dirs
}

func leftOver(before map[string]bool) string {
	var out []string
	for t := range traces() {
		if !before[t] {
			out = append(out, t)
		}
	}
	return strings.Join(out, "\n")
}

// cli runs the command line within a limit and returns what it printed.
func cli(limit time.Duration, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	cmd := exec.CommandContext(ctx, roseau, args...)
	cmd.WaitDelay = 5 * time.Second
	out, err := cmd.CombinedOutput()
	if ctx.Err() != nil {
		err = fmt.Errorf("not done within %s: %w", limit, err)
	}
	return string(out), err
}

// must is cli for what has to work.
func must(t *testing.T, limit time.Duration, args ...string) string {
	t.Helper()
	out, err := cli(limit, args...)
	if err != nil {
		t.Fatalf("roseau %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return out
}

// refused demands an exit code and words in the message.
func refused(t *testing.T, code int, words []string, args ...string) {
	t.Helper()
	out, err := cli(2*time.Minute, args...)
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != code {
		t.Errorf("roseau %s: %v, want exit code %d\n%s", strings.Join(args, " "), err, code, out)
		return
	}
	for _, w := range words {
		if !strings.Contains(out, w) {
			t.Errorf("roseau %s: the message does not say %q:\n%s", strings.Join(args, " "), w, out)
		}
	}
}

func decode(t *testing.T, out string, v any) {
	t.Helper()
	if err := json.Unmarshal([]byte(out), v); err != nil {
		t.Fatalf("decode %q: %v", out, err)
	}
}
