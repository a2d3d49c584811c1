// Package repo holds the rules of this repository as tests: which package may
// import which, what the pure cores must not touch, how long files may grow.
package repo

import (
	"bufio"
	"bytes"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// layers, lowest first. A package imports only packages of lower layers, or of
// its own layer where sameLayer says so. The longest prefix counts.
var layers = []struct {
	prefix    string
	sameLayer bool // packages of this layer may import each other
}{
	{"internal/base", true},
	{"internal/model", false},
	{"internal/core", true},
	{"internal/pki", false},
	{"internal/secret", false},
	{"internal/nodeconf", false},
	{"internal/client", false},
	{"internal/driver", true},
	{"internal/unit", false},
	{"internal/store", false},
	{"internal/block", true},
	{"internal/api", false},
	{"internal/svc", true},
	{"internal/sim", true},
	{"internal/guard", true},
	{"internal/volumeguard", false},
	{"internal/storage", true},
	{"internal/witness", false},
	{"internal/node", false},
	{"internal/lab", true},
	{"internal/drill", true},
	{"internal/bench", false},
	{"internal/cli", false},
	{"cmd", false},
	{"test", false},
}

// pure lists packages that decide: they get time, identity and randomness as
// values and return what to do.
var pure = []string{
	"internal/core", "internal/model",
	"internal/block/disk", "internal/block/replica", "internal/block/writer", "internal/block/wire", "internal/block/place",
}

// bannedInPure says why. base/clock is allowed for its types only.
var bannedInPure = map[string]string{
	"os":                        "I/O belongs to the shell",
	"os/exec":                   "I/O belongs to the shell",
	"net/http":                  "I/O belongs to the shell",
	"syscall":                   "I/O belongs to the shell",
	"golang.org/x/sys/unix":     "I/O belongs to the shell",
	"log/slog":                  "cores return events; the shell logs them",
	"log":                       "cores return events; the shell logs them",
	"math/rand":                 "randomness comes in as a value",
	"math/rand/v2":              "randomness comes in as a value",
	"crypto/rand":               "randomness comes in as a value",
	"context":                   "nothing in a core can block",
	"go.etcd.io/etcd/client/v3": "cores return transactions as values",
}

// bannedEverywhere names modules or packages and what to use in their place.
var bannedEverywhere = map[string]string{
	"io/ioutil":             "os and io",
	"github.com/pkg/errors": "fmt.Errorf with %w and internal/base/errs",
	"math/rand":             "math/rand/v2",
	"log":                   "log/slog, passed to constructors",
}

type file struct {
	path string // from the repository's root
	pkg  string // directory
	test bool
	ast  *ast.File
	fset *token.FileSet
	src  []byte
}

func load(t *testing.T) []file {
	t.Helper()
	root := filepath.Join("..", "..")
	var files []file
	err := filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			if name := d.Name(); p != root && (strings.HasPrefix(name, ".") || name == "testdata" || name == "node_modules" || name == "bin") {
				return filepath.SkipDir
			}
			return nil
		}
		if !strings.HasSuffix(p, ".go") {
			return nil
		}
		src, err := os.ReadFile(p)
		if err != nil {
			return err
		}
		fset := token.NewFileSet()
		a, err := parser.ParseFile(fset, p, src, parser.ParseComments)
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(root, p)
		files = append(files, file{rel, filepath.Dir(rel), strings.HasSuffix(p, "_test.go"), a, fset, src})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(files) < 10 {
		t.Fatalf("only %d Go files found: the rules would pass for nothing", len(files))
	}
	return files
}

func layerOf(pkg string) int {
	best, at := -1, -1
	for i, l := range layers {
		if (pkg == l.prefix || strings.HasPrefix(pkg, l.prefix+"/")) && len(l.prefix) > best {
			best, at = len(l.prefix), i
		}
	}
	return at
}

func TestImportsPointDownwards(t *testing.T) {
	for _, f := range load(t) {
		if f.test || f.pkg == "internal/repo" {
			continue
		}
		from := layerOf(f.pkg)
		if from < 0 {
			t.Errorf("%s: package %s has no layer: add it to layers", f.path, f.pkg)
			continue
		}
		for _, imp := range f.ast.Imports {
			to, ok := strings.CutPrefix(strings.Trim(imp.Path.Value, `"`), "roseau/")
			if !ok {
				continue
			}
			l := layerOf(to)
			if l > from || l == from && !layers[from].sameLayer && to != f.pkg {
				t.Errorf("%s imports %s: imports go downwards only (%s is above or beside)", f.path, to, to)
			}
		}
	}
}

func isPure(pkg string) bool {
	if strings.HasSuffix(pkg, "test") { // disktest and the like are for tests
		return false
	}
	return slices.ContainsFunc(pure, func(p string) bool { return pkg == p || strings.HasPrefix(pkg, p+"/") })
}

func TestPureCoresStayPure(t *testing.T) {
	for _, f := range load(t) {
		if f.test || !isPure(f.pkg) {
			continue
		}
		for _, imp := range f.ast.Imports {
			p := strings.Trim(imp.Path.Value, `"`)
			if why, bad := bannedInPure[p]; bad {
				t.Errorf("%s imports %s: %s", f.path, p, why)
			}
		}
		ast.Inspect(f.ast, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.GoStmt:
				t.Errorf("%s: a goroutine in a pure core", f.fset.Position(n.Pos()))
			case *ast.SelectorExpr:
				x, ok := n.X.(*ast.Ident)
				if ok && (x.Name == "time" && slices.Contains([]string{"Now", "Sleep", "After", "Since", "NewTimer", "Tick"}, n.Sel.Name) ||
					x.Name == "clock" && n.Sel.Name == "System") {
					t.Errorf("%s: %s.%s in a pure core: time is an argument", f.fset.Position(n.Pos()), x.Name, n.Sel.Name)
				}
			}
			return true
		})
	}
}

func TestBannedImports(t *testing.T) {
	for _, f := range load(t) {
		for _, imp := range f.ast.Imports {
			if use, bad := bannedEverywhere[strings.Trim(imp.Path.Value, `"`)]; bad {
				t.Errorf("%s imports %s: use %s", f.path, imp.Path.Value, use)
			}
		}
	}
}

func TestWallClockOnlyAtTheEdge(t *testing.T) {
	for _, f := range load(t) {
		if f.test || f.pkg != "internal/store" && !strings.HasPrefix(f.pkg, "internal/svc") {
			continue
		}
		ast.Inspect(f.ast, func(n ast.Node) bool {
			if s, ok := n.(*ast.SelectorExpr); ok && s.Sel.Name == "Sleep" {
				if x, ok := s.X.(*ast.Ident); ok && x.Name == "time" {
					t.Errorf("%s: time.Sleep: wait on a condition or a context", f.fset.Position(n.Pos()))
				}
			}
			return true
		})
	}
}

// longFiles may be longer than maxLines, with the reason.
var longFiles = map[string]string{}

const maxLines = 700

func TestFilesStayShort(t *testing.T) {
	for _, f := range load(t) {
		lines := 0
		for sc := bufio.NewScanner(bytes.NewReader(f.src)); sc.Scan(); {
			lines++
		}
		why, listed := longFiles[f.path]
		if lines > maxLines && !listed {
			t.Errorf("%s has %d lines: find its seam, or list it in longFiles with a reason", f.path, lines)
		}
		if listed && lines <= maxLines {
			t.Errorf("%s is short again (listed: %s): take it off longFiles", f.path, why)
		}
	}
}

func TestPackagesHaveComments(t *testing.T) {
	has, pkgs := map[string]bool{}, map[string]bool{}
	for _, f := range load(t) {
		if f.test && f.pkg != "internal/repo" && !strings.HasPrefix(f.pkg, "test/") {
			continue
		}
		pkgs[f.pkg] = true
		if f.ast.Doc != nil {
			has[f.pkg] = true
		}
	}
	for p := range pkgs {
		if !has[p] {
			t.Errorf("package %s has no package comment", p)
		}
	}
}

func TestExportedNamesHaveComments(t *testing.T) {
	for _, f := range load(t) {
		if f.test || f.ast.Name.Name == "main" {
			continue
		}
		for _, d := range f.ast.Decls {
			switch d := d.(type) {
			case *ast.FuncDecl:
				if d.Name.IsExported() && d.Doc == nil && exportedReceiver(d) && !(d.Recv != nil && selfEvident[d.Name.Name]) {
					t.Errorf("%s: %s has no comment", f.fset.Position(d.Pos()), d.Name.Name)
				}
			case *ast.GenDecl:
				for _, s := range d.Specs {
					if ts, ok := s.(*ast.TypeSpec); ok && ts.Name.IsExported() && d.Doc == nil && ts.Doc == nil {
						t.Errorf("%s: type %s has no comment", f.fset.Position(ts.Pos()), ts.Name.Name)
					}
				}
			}
		}
	}
}

// selfEvident methods say what they do by the interface that they satisfy.
var selfEvident = map[string]bool{"String": true, "Error": true, "Unwrap": true, "Len": true, "Less": true, "Swap": true, "Push": true, "Pop": true}

func exportedReceiver(d *ast.FuncDecl) bool {
	if d.Recv == nil || len(d.Recv.List) == 0 {
		return true
	}
	e := d.Recv.List[0].Type
	if s, ok := e.(*ast.StarExpr); ok {
		e = s.X
	}
	if ix, ok := e.(*ast.IndexExpr); ok {
		e = ix.X
	}
	id, ok := e.(*ast.Ident)
	return ok && id.IsExported()
}
