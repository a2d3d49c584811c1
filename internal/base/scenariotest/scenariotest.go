// Package scenariotest runs the scenarios of a pure core: scripts that are played
// against a small world, and the logs that are expected of it. Tests import it.
package scenariotest

import (
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

var rewrite = flag.Bool("rewrite", false, "write the expected logs of the scenarios anew")

// Timed calls do for each line of a script, which begins with a time, with that and the
// words behind it. Empty lines and comments are left out.
func Timed(t *testing.T, script string, do func(at time.Duration, words []string)) {
	t.Helper()
	for line := range strings.Lines(script) {
		f := strings.Fields(line)
		if len(f) == 0 || strings.HasPrefix(f[0], "#") {
			continue
		}
		at, err := time.ParseDuration(f[0])
		if err != nil {
			t.Fatalf("line %q: %v", line, err)
		}
		do(at, f[1:])
	}
}

// Run plays each testdata/scenarios/NAME/script of the package under test as a
// subtest, and compares the log that play returns with the file expected beside
// it. With -rewrite it writes that file.
func Run(t *testing.T, play func(t *testing.T, script string) (log string)) {
	t.Helper()
	dirs, err := filepath.Glob("testdata/scenarios/*")
	if err != nil || len(dirs) == 0 {
		t.Fatal("no scenarios", err)
	}
	for _, dir := range dirs {
		t.Run(filepath.Base(dir), func(t *testing.T) {
			script, err := os.ReadFile(filepath.Join(dir, "script"))
			if err != nil {
				t.Fatal(err)
			}
			got, file := play(t, string(script)), filepath.Join(dir, "expected")
			if *rewrite {
				if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			want, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if got != string(want) {
				t.Errorf("got:\n%s\nwant:\n%s", got, want)
			}
		})
	}
}
