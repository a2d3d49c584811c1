// Package nbdtest runs NBD clients that nobody here wrote, for tests.
package nbdtest

import (
	"context"
	"os/exec"
	"strings"
	"testing"
	"time"
)

// limit bounds one run of a tool on a loaded machine.
const limit = 90 * time.Second

// Tool runs a program in a folder of its own and returns what it printed; an exit
// code other than 0 fails the test. The test is skipped only if the program is
// not installed.
func Tool(t *testing.T, name string, args ...string) string {
	t.Helper()
	if _, err := exec.LookPath(name); err != nil {
		t.Skipf("%s is not installed", name)
	}
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = t.TempDir()
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}
