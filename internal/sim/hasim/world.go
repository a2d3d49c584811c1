// Package hasim runs the HA manager's pure core (core/ha, with core/place and
// core/balance) in a simulated cluster of any size: random losses of nodes, guards,
// sessions, beats, etcd and of the manager itself, with checkers after every step.
// Nodes and guards are played in coarse strokes: what a guard may do is decided by
// the writer lease, as in the product; the engine below it is package sim's affair.
//
// Run: `roseau sim ha`; test: `go test ./internal/sim/hasim`.
package hasim

import (
	"fmt"
	"math/rand/v2"
	"time"

	"roseau/internal/base/clock"
	"roseau/internal/base/ids"
	"roseau/internal/base/size"
	"roseau/internal/core/ha"
	"roseau/internal/core/place"
	"roseau/internal/core/repl"
	"roseau/internal/model"
)

// Times of the played parts; tick is the manager's own interval.
const (
	tick        = 100 * time.Millisecond
	lease       = 3300 * time.Millisecond // from the writer's last grant to a foreign OPEN
	startTime   = 400 * time.Millisecond  // placement to PREPARE
	openTime    = 300 * time.Millisecond  // PREPARE done to running
	sessionTTL  = 2500 * time.Millisecond
	migrateTime = 4 * time.Second
)

// Options of one run. Zero values mean those in brackets.
type Options struct {
	Seed  uint64
	Nodes int           // [3 to 12, drawn]
	VMs   int           // [5 to 60, drawn]
	Time  time.Duration // virtual, of faults; then all is mended and 60 s pass [3 min]
	// ControlPlaneOnly: sessions, beats, etcd and the manager fail, nodes and guards
	// do not; no machine may be touched then.
	ControlPlaneOnly bool
	Trace            func(line string) // nil: nothing is printed
}

// node is a node as it is.
type node struct {
	ha.Node
	up       bool
	cutAt    clock.Instant
	silenced bool // its beats do not arrive
	noLease  bool // its session cannot be kept
	broken   bool // no guard can start there
	backAt   clock.Instant
}

// guard is the guard of a VM on a node.
type guard struct {
	r    ha.Report
	born clock.Instant
}

// vm is a VM as it is.
type vm struct {
	ha.VM
	guards map[int]*guard
	// writer is the node whose guard holds the volumes, -1: none. silent is since
	// when it renews nothing; zero: it lives.
	writer  int
	silent  clock.Instant
	lostAt  clock.Instant // when it stopped running against its will; zero: it runs
	touched int           // how often another run took over
	moveAt  clock.Instant // when its migration is complete
}

type world struct {
	o     Options
	rnd   *rand.Rand
	now   clock.Instant
	start clock.Instant
	nodes []*node
	vms   []*vm
	at    map[ids.ID]int // node's index
	vmAt  map[ids.ID]int
	rules []place.VMRule
	state ha.State
	etcd  bool
	deaf  bool
	rev   int64
	res   *Result
	// before is the state of each VM before the step.
	before map[ids.ID]model.VMState
}

func nodeID(i int) ids.ID { return ids.ID{0: 1, 14: byte(i >> 8), 15: byte(i)} }
func vmID(i int) ids.ID   { return ids.ID{0: 2, 14: byte(i >> 8), 15: byte(i)} }

func newWorld(o Options) *world {
	w := &world{o: o, rnd: rand.New(rand.NewPCG(o.Seed, 7)), now: clock.Instant(time.Hour), etcd: true, res: &Result{Seed: o.Seed},
		at: map[ids.ID]int{}, vmAt: map[ids.ID]int{}, before: map[ids.ID]model.VMState{}}
	w.start = w.now
	if w.o.Nodes == 0 {
		w.o.Nodes = 3 + w.rnd.IntN(10)
	}
	if w.o.VMs == 0 {
		w.o.VMs = 5 + w.rnd.IntN(56)
	}
	if w.o.Time == 0 {
		w.o.Time = 3 * time.Minute
	}
	w.state.View.Listening, w.state.View.LeaderSince = w.now.Add(-time.Minute), w.now.Add(-time.Minute)
	memory := size.Bytes(w.o.VMs/w.o.Nodes+1) * 16 * size.GiB // half is used
	for i := range w.o.Nodes {
		w.nodes = append(w.nodes, &node{up: true, Node: ha.Node{ID: nodeID(i), Name: fmt.Sprintf("n%02d", i), Session: true, Known: true, CPUs: 64,
			Memory: memory, MemoryFree: memory, KVM: true, Storage: true, LastBeat: w.now}})
		w.at[nodeID(i)] = i
	}
	for i := range w.o.VMs {
		w.addVM(i)
	}
	w.addRules()
	w.res.Nodes, w.res.VMs = w.o.Nodes, w.o.VMs
	return w
}

func (w *world) addVM(i int) {
	home := i % len(w.nodes)
	v := &vm{writer: home, guards: map[int]*guard{}, VM: ha.VM{ID: vmID(i), Name: fmt.Sprintf("m%04d", i), Want: true, HA: model.HAOn,
		Priority: w.rnd.IntN(5) * 10, CPUs: 1 + w.rnd.IntN(4), Memory: size.Bytes(2+w.rnd.IntN(12)) * size.GiB, Accel: "kvm"}}
	copies := []ids.ID{w.nodes[home].ID}
	for _, n := range w.rnd.Perm(len(w.nodes)) {
		if n != home && len(copies) < 3 {
			copies = append(copies, w.nodes[n].ID)
		}
	}
	v.Volumes = []place.Volume{{Name: v.Name + "-0", Groups: [][]ids.ID{copies}}}
	if i > 0 && w.rnd.IntN(10) == 0 {
		v.After = []string{w.vms[w.rnd.IntN(i)].Name} // no circle: only earlier ones
		v.StartDelay = time.Duration(w.rnd.IntN(3)) * time.Second
	}
	v.Placement = repl.Placement{Node: nodeID(home), Attempt: 1, State: ha.PlaceRunning, Run: ids.ID{0: 3, 15: 1}}
	v.guards[home] = &guard{r: ha.Report{Node: nodeID(home), Attempt: 1, Phase: "running", State: model.VMRunning, Since: w.now.Add(-time.Minute)}}
	w.bump(v)
	w.vms, w.vmAt[v.ID] = append(w.vms, v), i
}

// addRules draws apart rules between neighbours, which start on different nodes.
func (w *world) addRules() {
	for i := range len(w.vms) / 20 {
		a, b := w.vms[i*2], w.vms[i*2+1]
		w.rules = append(w.rules, place.VMRule{Name: fmt.Sprintf("apart%d", i), Kind: model.RuleApart, VMs: []string{a.Name, b.Name}})
	}
	w.state.View.Rules = w.rules
}

func (w *world) bump(v *vm) { w.rev++; v.PlacementRev = w.rev }

func (w *world) trace(format string, args ...any) {
	if w.o.Trace != nil {
		w.o.Trace(fmt.Sprintf("%7.1fs ", w.now.Sub(w.start).Seconds()) + fmt.Sprintf(format, args...))
	}
}

// runs reports whether a guest of v runs and may write.
func (v *vm) runs() bool { return v.writer >= 0 && v.silent == 0 }

// silence makes v's writer fall silent: its node, its guard or its link is gone.
func (w *world) silence(v *vm) {
	if v.writer < 0 || v.silent != 0 {
		return
	}
	v.silent = w.now
	if v.lostAt == 0 {
		v.lostAt = w.now
	}
}

func (w *world) cut(i int) {
	n := w.nodes[i]
	n.up, n.cutAt, n.Storage = false, w.now, false
	for _, v := range w.vms {
		if v.writer == i {
			w.silence(v)
		}
		delete(v.guards, i)
	}
	w.res.Cuts++
	w.trace("%s is cut", n.Name)
}

func (w *world) restore(i int) {
	n := w.nodes[i]
	n.up, n.backAt = true, w.now
	w.trace("%s is back", n.Name)
}

// play moves nodes and guards on by a tick.
func (w *world) play() {
	for _, n := range w.nodes {
		n.Session = n.up && !n.noLease && w.now.Sub(n.backAt) > time.Second ||
			!n.up && n.Session && w.now.Sub(n.cutAt) < sessionTTL || n.Session && !w.etcd
		if n.Session {
			n.SessionLost = 0
		} else if n.SessionLost == 0 {
			n.SessionLost = w.now
		}
		n.Storage = n.up && w.now.Sub(n.backAt) > 2*time.Second
		if n.up && !n.silenced && !w.deaf {
			n.LastBeat = w.now
		}
	}
	for _, v := range w.vms {
		w.playVM(v)
	}
}

func (w *world) playVM(v *vm) {
	p := v.Placement
	i, ok := w.at[p.Node]
	if !ok || !w.nodes[i].up {
		return
	}
	switch p.State {
	case ha.PlaceRunning:
		// A node that was away for a moment finds no guard: it says so.
		if v.guards[i] == nil && w.now.Sub(w.nodes[i].backAt) > time.Second {
			v.guards[i] = &guard{r: ha.Report{Node: p.Node, Attempt: p.Attempt, Phase: "absent", Since: w.now}}
		}
		// A guard that ended under an earlier attempt is followed by a new one.
		if g := v.guards[i]; g != nil && g.r.Phase == "failed" && g.r.Attempt < p.Attempt {
			v.guards[i] = &guard{born: w.now, r: ha.Report{Node: p.Node, Attempt: p.Attempt, Phase: "starting", Since: w.now}}
		}
		if g := v.guards[i]; g != nil && (g.r.Phase == "starting" || g.r.Phase == "preparing" || g.r.Phase == "opening") {
			w.playStart(v, i)
		}
	case ha.PlaceStarting:
		w.playStart(v, i)
	case ha.PlaceMigrating:
		w.playMigration(v, i)
	}
}

// playStart is a guard that starts: 0.4 s to PREPARE, which asks the lease, one
// transaction, 0.3 s to running.
func (w *world) playStart(v *vm, i int) {
	p := v.Placement
	g := v.guards[i]
	if g == nil || g.r.Attempt < p.Attempt {
		g = &guard{born: w.now, r: ha.Report{Node: p.Node, Attempt: p.Attempt, Phase: "starting", Since: w.now}}
		v.guards[i] = g
	}
	if w.now.Sub(g.born) < startTime {
		return
	}
	switch g.r.Phase {
	case "starting":
		if w.nodes[i].broken {
			g.r.Phase, g.r.Since, g.r.Reason = "failed", w.now, "QEMU does not start here"
			return
		}
		g.r.Phase, g.r.Since = "preparing", w.now
	case "preparing":
		g.r.Live = v.runs() && v.writer != i
		if !w.etcd || g.r.Live || v.writer >= 0 && v.silent != 0 && w.now.Sub(v.silent) < lease {
			return
		}
		g.r.Phase, g.r.Since = "opening", w.now
		w.take(v, i)
	case "opening":
		if w.now.Sub(g.r.Since) >= openTime && v.writer == i {
			g.r.Phase, g.r.Since, g.r.State = "running", w.now, model.VMRunning
			if !w.etcd {
				g.r.Phase = "opening" // its placement cannot be written yet
				return
			}
			v.Placement.State, v.Placement.Run = ha.PlaceRunning, ids.ID{0: 3, 14: byte(p.Attempt >> 8), 15: byte(p.Attempt)}
			w.bump(v)
			w.started(v)
		}
	}
}

// take is the one transaction by which a guard becomes the writer. The checker of
// H1: the old writer must be past its lease.
func (w *world) take(v *vm, i int) {
	if v.runs() && v.writer != i {
		w.fail("%s runs on %s, and %s took it", v.Name, w.nodes[v.writer].Name, w.nodes[i].Name)
	}
	v.writer, v.silent = i, 0
	v.touched++
	for n := range v.guards {
		if n != i {
			delete(v.guards, n) // killed: its run was taken over
		}
	}
}

// started takes the time of a restart.
func (w *world) started(v *vm) {
	w.trace("%s runs on %s", v.Name, w.nodes[v.writer].Name)
	w.res.Starts++
	if v.lostAt != 0 {
		w.res.restarts = append(w.res.restarts, w.now.Sub(v.lostAt))
		v.lostAt = 0
	}
}

func (w *world) playMigration(v *vm, i int) {
	t := w.at[v.Placement.Target]
	if !w.nodes[t].up || v.writer != i || v.silent != 0 {
		return // the manager takes it back, or recovers
	}
	if v.guards[t] == nil {
		v.guards[t] = &guard{r: ha.Report{Node: nodeID(t), Attempt: v.Placement.Attempt, Phase: "incoming", Since: w.now}}
	}
	if !w.etcd || w.now.Before(v.moveAt) {
		return
	}
	v.writer = t
	delete(v.guards, i)
	v.guards[t].r = ha.Report{Node: nodeID(t), Attempt: v.Placement.Attempt, Phase: "running", State: model.VMRunning, Since: w.now}
	v.Placement = repl.Placement{Node: nodeID(t), Attempt: v.Placement.Attempt, State: ha.PlaceRunning, Run: v.Placement.Run}
	w.bump(v)
	w.res.Moves++
}
