package sim

import (
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strings"
	"time"

	"roseau/internal/base/errs"
)

// Scenarios are exact sequences of events; only their delays are random, so
// each has as many seeds as are wanted. A directory has a README of one
// sentence and a script; docs/design/simulator.md lists the words.
//
//go:embed testdata/scenarios
var scenarioFiles embed.FS

// Scenario is one sequence.
type Scenario struct {
	Name   string
	About  string // one sentence
	script []scriptLine
}

// World names the world that a scenario plays in, its first word: "machines" (guards,
// migration, HA manager), "votes" (voters and the witness), "" the block engine.
func (s *Scenario) World() string {
	if len(s.script) > 0 && len(s.script[0].words) == 1 {
		switch w := s.script[0].words[0]; w {
		case "machines", "votes":
			return w
		}
	}
	return ""
}

type scriptLine struct {
	number int
	words  []string
}

// Scenarios returns all scenarios by name.
func Scenarios() ([]Scenario, error) {
	dirs, err := fs.ReadDir(scenarioFiles, "testdata/scenarios")
	if err != nil {
		return nil, err
	}
	var out []Scenario
	for _, d := range dirs {
		s, err := loadScenario(d.Name())
		if err != nil {
			return nil, err
		}
		out = append(out, s)
	}
	return out, nil
}

// FindScenario returns one by name.
func FindScenario(name string) (Scenario, error) { return loadScenario(name) }

func loadScenario(name string) (Scenario, error) {
	s := Scenario{Name: name}
	about, err := scenarioFiles.ReadFile(path.Join("testdata/scenarios", name, "README"))
	if err != nil {
		return s, errs.New(errs.NotFound, "scenario %s: it has no README: %w", name, err)
	}
	text, err := scenarioFiles.ReadFile(path.Join("testdata/scenarios", name, "script"))
	if err != nil {
		return s, errs.New(errs.NotFound, "scenario %s: it has no script: %w", name, err)
	}
	s.About = strings.TrimSpace(string(about))
	for i, line := range strings.Split(string(text), "\n") {
		line, _, _ = strings.Cut(line, "#")
		if words := strings.Fields(line); len(words) > 0 {
			s.script = append(s.script, scriptLine{i + 1, words})
		}
	}
	return s, nil
}

// scriptError: the script could not be followed, which says nothing about the
// contract. A mutant is not caught by it.
type scriptError struct {
	scenario string
	line     scriptLine
	cause    error
}

func (e *scriptError) Error() string {
	return fmt.Sprintf("scenario %s, line %d (%s): %v", e.scenario, e.line.number, strings.Join(e.line.words, " "), e.cause)
}

func (e *scriptError) Unwrap() error { return e.cause }

// player follows a script in a world.
type player struct {
	w    *world
	t    *tenant         // whose word it is
	over bool            // the script ends here: nothing comes right any more, and must not
	keep map[int]float64 // by node: how likely a sector survives its next power cut
}

// scripted prepares a world for a scenario: no faults, no manager, no requests
// of the guest's own.
func scripted(p *profile, s *Scenario) {
	*p = profile{
		every: time.Hour, etcdLo: time.Millisecond, etcdHi: 4 * time.Millisecond, think: 2 * time.Millisecond, patience: time.Hour,
		diskLo: 20 * time.Microsecond, diskHi: 500 * time.Microsecond, tornLikely: 0.5, compute: 2, disks: 2, rotNode: -1, failingNode: -1,
	}
	for _, l := range s.script {
		switch l.words[0] {
		case "slow-disks":
			p.diskHi = 20 * time.Millisecond
		case "one-disk":
			p.disks = 1
		case "min-isr-2":
			p.minISR = 2
		}
	}
}

// play runs the script, then lets the faults end and verifies.
func (w *world) play(s *Scenario) {
	p := &player{w: w, t: w.tenant, keep: map[int]float64{}}
	w.player = p
	for _, t := range w.tenants {
		t.guest.retired, t.manager.off = true, true
	}
	for _, n := range w.nodes {
		n.start()
	}
	if !w.clones.prepare() {
		return
	}
	for _, t := range w.tenants {
		t.manager.tick()
	}
	words := map[string]func([]string) error{}
	for name, do := range scriptWords {
		words[name] = func(args []string) error { return do(p, args) }
	}
	if w.follow(s, words, func() bool { return p.over }); w.err != nil || p.over {
		return
	}
	for _, t := range w.tenants {
		if c := t.manager.challenger; c != nil && !c.claimed {
			p.t = t
			p.endChallenge()
		}
		t.manager.off = false
	}
	w.player = nil
	w.opt.Ops = w.ops
	w.settle()
}

// follow obeys a script until it ends, something fails, or over says so.
func (t *timeline) follow(s *Scenario, words map[string]func(args []string) error, over func() bool) {
	for _, line := range s.script {
		t.tracef("--- %s", strings.Join(line.words, " "))
		do, ok := words[line.words[0]]
		err := errors.New("no such word")
		if ok {
			err = do(line.words[1:])
		}
		if t.err == nil && err != nil {
			t.err = &scriptError{s.Name, line, err}
			t.tracef("FAILED: %v", t.err)
		}
		if t.err != nil || over() {
			return
		}
	}
}

// RunScenario runs one seed of a scenario.
func RunScenario(s Scenario, seed uint64, m Mutations, trace func(string)) Result {
	return runRecovered(Options{Seed: seed, Scenario: &s, Mutations: m, Trace: trace})
}

// ScriptFailed reports whether err says that a script could not be followed.
func ScriptFailed(err error) bool {
	var s *scriptError
	return errors.As(err, &s)
}

// await lets the world go on until cond holds.
func (p *player) await(what string, limit time.Duration, cond func() bool) error {
	if !p.w.run(p.w.now.Add(limit), cond) && p.w.err == nil {
		return fmt.Errorf("%s did not come within %s: %s", what, limit, p.w.describe())
	}
	return nil
}

// pass lets d go by.
func (p *player) pass(d time.Duration) error {
	end := p.w.now.Add(d)
	p.w.after(d, func() {})
	p.w.run(end, func() bool { return p.w.now >= end })
	return nil
}

// node parses n1 to n5.
func (p *player) node(word string) (*node, error) {
	if len(word) == 2 && word[0] == 'n' && int(word[1]-'1') < len(p.w.nodes) && word[1] >= '1' {
		return p.w.nodes[word[1]-'1'], nil
	}
	return nil, fmt.Errorf("%q is no node: want n1 to n%d", word, len(p.w.nodes))
}

func (p *player) nodes(words []string) ([]*node, error) {
	var list []*node
	for _, word := range words {
		n, err := p.node(word)
		if err != nil {
			return nil, err
		}
		list = append(list, n)
	}
	if len(list) == 0 {
		return nil, errors.New("want at least one node")
	}
	return list, nil
}

// duration parses 5ms, or a random one as 5ms..20ms.
func (p *player) duration(word string) (time.Duration, error) { return p.w.duration(word) }

func (t *timeline) duration(word string) (time.Duration, error) {
	lo, hi, both := strings.Cut(word, "..")
	d, err := time.ParseDuration(lo)
	if err != nil || !both {
		return d, err
	}
	e, err := time.ParseDuration(hi)
	if err != nil || e < d {
		return d, fmt.Errorf("%q is no range of durations", word)
	}
	return t.between(d, e), nil
}

// block parses EXTENT.BLOCK.
func (p *player) block(word string) (int, error) {
	var e, b int
	if _, err := fmt.Sscanf(word, "%d.%d", &e, &b); err != nil || e < 0 || e >= extentCount || b < 0 || b >= extentBlocks {
		return 0, fmt.Errorf("%q is no block: want EXTENT.BLOCK", word)
	}
	return e*extentBlocks + b, nil
}

// on picks the guard that stands for a word: the newest that runs on the node.
func (p *player) guardOn(n *node) *guard {
	for _, g := range slices.Backward(p.w.guards) {
		if g.t == p.t && g.node == n && !g.parent {
			return g
		}
	}
	return nil
}
