package repo

import (
	"os/exec"
	"strings"
	"testing"
)

// What `make test` prints at its end is all that a short log keeps of a failure.
func TestFailedSaysWhy(t *testing.T) {
	for _, c := range []struct{ name, in, want string }{
		{"a test and its sub-test", `ok  	roseau/a	0.1s
--- FAIL: TestBad (1.00s)
    a_test.go:4: really bad
        because of this
    --- FAIL: TestBad/sub (0.00s)
        a_test.go:9: sub is bad
FAIL
FAIL	roseau/b	1.0s
`, `--- FAIL: TestBad (1.00s)
    a_test.go:4: really bad
        because of this
    --- FAIL: TestBad/sub (0.00s)
        a_test.go:9: sub is bad
FAIL	roseau/b	1.0s
`},
		{"with -v, beside tests that pass; a dump is cut", `=== RUN   TestGood
    a_test.go:1: a figure
--- PASS: TestGood (0.00s)
=== RUN   TestBad
    a_test.go:4: really bad
    a_test.go:5: the log:
        1
        2
        3
        4
--- FAIL: TestBad (0.00s)
=== RUN   TestLater
    a_test.go:7: another figure
--- PASS: TestLater (0.00s)
FAIL
exit status 1
FAIL	roseau/b	1.0s
`, `--- FAIL: TestBad (0.00s)
    a_test.go:4: really bad
    a_test.go:5: the log:
        2
        3
        4
FAIL	roseau/b	1.0s
`},
		{"no test failed", `lab up: exit status 1
cause: no space
FAIL	roseau/b	1.0s
`, `lab up: exit status 1
cause: no space
FAIL	roseau/b	1.0s
`},
		{"a panic", `panic: test timed out after 1s

goroutine 7 [running]:
roseau/b.f()
	/x/b/b.go:3 +0x25
roseau/b.TestHangs()
	/x/b/b_test.go:3 +0x25
FAIL	roseau/b	1.0s
`, `panic: test timed out after 1s
	/x/b/b_test.go:3 +0x25
FAIL	roseau/b	1.0s
`},
		{"it does not compile", `# roseau/c [roseau/c.test]
c/c_test.go:3:30: undefined: x
ok  	roseau/a	0.1s
FAIL	roseau/c [build failed]
`, `# roseau/c [roseau/c.test]
c/c_test.go:3:30: undefined: x
FAIL	roseau/c [build failed]
`},
		{"not a test at all", "one\nmake: *** [Makefile:21: build] Error 1\n", "one\nmake: *** [Makefile:21: build] Error 1\n"},
		{"much", "--- FAIL: TestA (0.1s)\n" + strings.Repeat("--- FAIL: TestB (0.1s)\n", 40), "--- FAIL: TestA (0.1s)\n" + strings.Repeat("--- FAIL: TestB (0.1s)\n", 24) + "and 16 lines more, above\n"},
	} {
		cmd := exec.Command("awk", "-f", "../../scripts/failed.awk")
		cmd.Stdin = strings.NewReader(c.in)
		out, err := cmd.CombinedOutput()
		if err != nil || string(out) != c.want {
			t.Errorf("%s: %v\n%s\nwant\n%s", c.name, err, out, c.want)
		}
	}
}
