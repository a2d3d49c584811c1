package cli

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"roseau/internal/base/errs"
	"roseau/internal/base/size"
)

func TestTablesAlign(t *testing.T) {
	var b bytes.Buffer
	if err := newTable("NAME", "SIZE").row("a", size.GiB).row("long-name", "").line("%d rows", 2).write(&b); err != nil {
		t.Fatal(err)
	}
	if want := "NAME       SIZE\na          1GiB\nlong-name  -\n2 rows\n"; b.String() != want {
		t.Errorf("got\n%swant\n%s", b.String(), want)
	}
}

func TestYAMLHasTheNamesOfJSON(t *testing.T) {
	var b bytes.Buffer
	v := struct {
		MemoryFree size.Bytes `json:"memory_free"`
		CPUs       int        `json:"cpus"`
	}{size.GiB, 2}
	if err := writeYAML(&b, v); err != nil || b.String() != "cpus: 2\nmemory_free: 1GiB\n" {
		t.Errorf("got %q, %v", b.String(), err)
	}
}

func TestExitCodes(t *testing.T) {
	for kind, want := range map[error]int{errs.Invalid: 2, errs.NotFound: 3, errs.Conflict: 4, errs.Fenced: 4, errs.Unavailable: 5, errs.Exhausted: 6, errs.Corrupt: 7, errs.Denied: 8} {
		if got := exitCode(errs.New(kind, "x")); got != want {
			t.Errorf("%v: %d, want %d", kind, got, want)
		}
	}
}

func TestWrongUsageIsInvalid(t *testing.T) {
	for _, args := range []string{"nonsense", "task nonsense", "task show", "task list --colour", "events -o xml", "node remove n1 --force"} {
		cmd := root()
		cmd.SetArgs(strings.Fields(args))
		cmd.SetOut(&bytes.Buffer{})
		cmd.SetErr(&bytes.Buffer{})
		if err := cmd.ExecuteContext(t.Context()); errs.Kind(err) != errs.Invalid || errs.Hint(err) == "" && args != "events -o xml" {
			t.Errorf("%s: %v", args, err)
		}
	}
}

func TestAgo(t *testing.T) {
	now := time.Unix(1e9, 0)
	for d, want := range map[time.Duration]string{0: "0s", -time.Hour: "0s", 59 * time.Second: "59s", 3 * time.Minute: "3m", 47 * time.Hour: "47h", 72 * time.Hour: "3d"} {
		if got := ago(now, now.Add(-d)); got != want {
			t.Errorf("%s: %s, want %s", d, got, want)
		}
	}
}
