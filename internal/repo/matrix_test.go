package repo

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

const root = "../.."

// TestMatrixNamesTests: docs/design/failure-matrix.md has every row once, each with
// a test or with what is not shown, and every test that it names exists.
func TestMatrixNamesTests(t *testing.T) {
	b, err := os.ReadFile(filepath.Join(root, "docs/design/failure-matrix.md"))
	if err != nil {
		t.Fatal(err)
	}
	page := string(b)
	next := 1
	for line := range strings.Lines(page) {
		m := regexp.MustCompile(`^\| (\d+)( R)? \|`).FindStringSubmatch(line)
		if m == nil {
			continue
		}
		if m[1] != fmt.Sprint(next) {
			t.Errorf("row %s stands where row %d should", m[1], next)
		}
		next++
		cells := strings.Split(strings.TrimSpace(line), "|")
		switch {
		case len(cells) != 7:
			t.Errorf("row %s has %d columns, want 5", m[1], len(cells)-2)
		case strings.TrimSpace(cells[5]) == "" && !strings.Contains(cells[3]+cells[4], "`"):
			t.Errorf("row %s has no test, and does not say so", m[1])
		case strings.TrimSpace(cells[5]) == "" && m[2] != "" && !strings.Contains(cells[4], "`"):
			t.Errorf("row %s wants real processes, has none, and does not say so", m[1])
		}
	}
	if next != 58 {
		t.Errorf("%d rows, want 57", next-1)
	}
	tables := page[strings.Index(page, "|---|"):]
	for _, ref := range regexp.MustCompile("`([a-z0-9/]+[.:/][A-Za-z0-9_-]+)`").FindAllStringSubmatch(tables, -1) {
		if err := exists(ref[1]); err != nil {
			t.Error(err)
		}
	}
}

// exists reports whether what the page calls a test is there.
func exists(ref string) error {
	if pkg, name, ok := strings.Cut(ref, ".Test"); ok {
		dir := "internal/" + pkg
		if pkg == "e2e" || strings.HasPrefix(pkg, "e2e/") {
			dir = "test/" + pkg
		}
		return inFiles(ref, dir+"/*_test.go", "func Test"+name+"(")
	}
	kind, name, _ := strings.Cut(strings.Replace(ref, "sim:", "fault/", 1), "/")
	switch kind {
	case "sim":
		return isThere(ref, "internal/sim/testdata/scenarios/"+name)
	case "ha":
		return isThere(ref, "internal/core/ha/testdata/scenarios/"+name)
	case "replica":
		return isThere(ref, "internal/block/replica/testdata/"+name)
	case "fault":
		return inFiles(ref, "internal/sim/faults.go", `{"`+name+`",`)
	case "mutant":
		return inFiles(ref, "internal/sim/mutants*.go", `Name: "`+name+`"`)
	case "drill", "soak":
		return inFiles(ref, "internal/drill/*.go", `"`+name+`"`)
	}
	return fmt.Errorf("%s: no such kind of test", ref)
}

func isThere(ref, path string) error {
	if _, err := os.Stat(filepath.Join(root, path)); err != nil {
		return fmt.Errorf("%s: %w", ref, err)
	}
	return nil
}

func inFiles(ref, glob, text string) error {
	files, err := filepath.Glob(filepath.Join(root, glob))
	if err != nil {
		return err
	}
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			return err
		}
		if strings.Contains(string(b), text) {
			return nil
		}
	}
	return fmt.Errorf("%s: %q is in none of %s", ref, text, glob)
}
