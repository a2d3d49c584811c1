package ha

import (
	"fmt"
	"slices"
	"sort"
	"strconv"
	"strings"
	"testing"
	"time"

	"roseau/internal/base/clock"
	"roseau/internal/base/ids"
	"roseau/internal/base/scenariotest"
	"roseau/internal/base/size"
	"roseau/internal/core/place"
	"roseau/internal/core/repl"
	"roseau/internal/model"
)

// TestScenarios runs each testdata/scenarios/<name>/script against a small world
// of nodes and guards and compares the log with expected.
func TestScenarios(t *testing.T) {
	scenariotest.Run(t, runScript)
}

const tick = 100 * time.Millisecond

// world is a cluster as far as the manager can see it: nodes that beat, a
// store of placements, and one guard a VM and node.
type world struct {
	t     *testing.T
	now   clock.Instant
	etcd  bool
	deaf  bool // no beat reaches the manager
	state State
	nodes []*wnode
	vms   []*wvm
	log   strings.Builder
	rev   int64
	// moves is how long a migration takes that the world carries out by itself; 0:
	// the script does.
	moves     time.Duration
	failMoves bool
	hold      bool
	slow      bool // placements cannot be written
	migrating map[ids.ID]clock.Instant
}

type wnode struct {
	Node
	up, session bool
	diedAt      clock.Instant
	failStarts  string
	noStorage   bool
	sickLink    bool
}

type wvm struct {
	VM
	guards map[ids.ID]*wguard
	// writer is the node whose guard holds the volumes; it holds them until
	// heldUntil even after its death.
	writer     ids.ID
	writerGone clock.Instant
	copies     []ids.ID
	waits      string // what its guards wait for while they prepare
}

type wguard struct {
	r       Report
	attempt uint64
	born    clock.Instant
}

func wid(n int) ids.ID { return ids.MustParse(fmt.Sprintf("00000000-0000-4000-8000-%012d", n)) }

func runScript(t *testing.T, script string) string {
	w := &world{t: t, now: clock.Instant(time.Hour), etcd: true}
	start := w.now
	w.state.View.Listening, w.state.View.LeaderSince = w.now, w.now.Add(-time.Minute)
	scenariotest.Timed(t, script, func(at time.Duration, words []string) {
		for w.now.Sub(start) < at {
			w.now = w.now.Add(tick)
			w.turn(start)
		}
		w.command(words)
	})
	return w.log.String()
}

func (w *world) node(name string) *wnode {
	for _, n := range w.nodes {
		if n.Name == name {
			return n
		}
	}
	w.t.Fatalf("no node %s", name)
	return nil
}

func (w *world) byID(id ids.ID) *wnode {
	for _, n := range w.nodes {
		if n.ID == id {
			return n
		}
	}
	return nil
}

func (w *world) vm(name string) *wvm {
	for _, v := range w.vms {
		if v.Name == name {
			return v
		}
	}
	w.t.Fatalf("no vm %s", name)
	return nil
}

// command changes the world; see the scripts.
func (w *world) command(f []string) {
	arg := func(i int) string {
		if i < len(f) {
			return f[i]
		}
		return ""
	}
	switch f[0] {
	case "end":
	case "node": // node NAME [memory]
		mem := 8 * size.GiB
		if arg(2) != "" {
			mem, _ = size.Parse(arg(2))
		}
		w.nodes = append(w.nodes, &wnode{up: true, session: true, Node: Node{ID: wid(len(w.nodes) + 1), Name: f[1], Known: true,
			CPUs: 4, Memory: mem, MemoryFree: mem, Storage: true, Networks: []string{"lan"}}})
	case "vm": // vm NAME NODE [key=value...]
		w.addVM(f)
	case "cut", "restore":
		n := w.node(f[1])
		n.up, n.diedAt = f[0] == "restore", w.now
		if !n.up {
			for _, v := range w.vms {
				if v.writer == n.ID && v.writerGone == 0 {
					v.writerGone = w.now
				}
				delete(v.guards, n.ID)
			}
		} else {
			n.session = true
		}
	case "session": // session NODE lost|back
		w.node(f[1]).session = f[2] == "back"
	case "etcd": // etcd down|up
		w.etcd = f[1] == "up"
		if w.etcd {
			w.state.View.LeaderSince = w.now
		}
	case "manager": // a new manager without memory, on a node that heard all beats
		w.state.VMs, w.state.Nodes = nil, nil
	case "stall": // stall VM: its guard stalls from now on
		v := w.vm(f[1])
		g := v.guards[v.writer]
		g.r.State, g.r.Stalled, g.r.Seen = model.VMPausedLease, 1, w.now
		v.writerGone = w.now
	case "absent": // the guard of VM is gone while its node lives
		v := w.vm(f[1])
		v.guards[v.writer].r.Phase, v.guards[v.writer].r.Since = "absent", w.now
		v.writerGone = w.now
	case "breaks": // breaks NODE why: every start there fails
		w.node(f[1]).failStarts = strings.Join(f[2:], " ")
	case "copies": // copies VM a,b: where its in-sync copies are
		v := w.vm(f[1])
		v.copies = nil
		for _, n := range strings.Split(f[2], ",") {
			v.copies = append(v.copies, w.node(n).ID)
		}
	case "sick": // sick VM on|off: its guard asks to be moved, or does not any more
		g := w.vm(f[1]).guards[w.vm(f[1]).Placement.Node]
		g.r.WantsMove, g.r.Stalled, g.r.Seen = "", 0, w.now
		if f[2] == "on" {
			g.r.WantsMove, w.vm(f[1]).writerGone = "connections to living nodes are lost", w.now
		} else {
			w.vm(f[1]).writerGone = 0
		}
	case "storage": // storage NODE off: its storage process is dead
		w.node(f[1]).noStorage = f[2] == "off"
	case "link": // link NODE sick: whoever takes over there asks to be moved
		w.node(f[1]).sickLink = f[2] == "sick"
	case "deaf": // deaf on|off: the manager hears no beats
		w.deaf = f[1] == "on"
	case "falls": // falls VM why: its guard ends with an error
		v := w.vm(f[1])
		v.guards[v.writer].r.Phase, v.guards[v.writer].r.Reason, v.guards[v.writer].r.Since = "failed", strings.Join(f[2:], " "), w.now
		v.writerGone = w.now
	case "waits": // waits VM [text]: its guards wait for a copy that only they know of
		w.vm(f[1]).waits = strings.Join(f[2:], " ")
	case "mended": // mended NODE: starts there succeed again
		w.node(f[1]).failStarts = ""
	case "label":
		w.node(f[1]).Labels = append(w.node(f[1]).Labels, f[2:]...)
	case "rule": // rule NAME KIND a,b [nodes=a,b] [labels=x,y] [soft]
		r := place.VMRule{Name: f[1], Kind: model.RuleKind(f[2]), VMs: strings.Split(f[3], ",")}
		for _, x := range f[4:] {
			switch k, val, _ := strings.Cut(x, "="); k {
			case "soft":
				r.Soft = true
			case "nodes":
				r.Nodes = strings.Split(val, ",")
			case "labels":
				r.Labels = strings.Split(val, ",")
			default:
				w.t.Fatalf("rule: unknown key %s", k)
			}
		}
		w.state.View.Rules = append(w.state.View.Rules, r)
	case "told": // beats say that the guard of VM holds its lease
		w.vm(f[1]).ToldAlive = 1
	case "moves": // moves DURATION|fail: migrations are carried out, or fail after 1 s
		w.moves, w.failMoves = time.Second, f[1] == "fail"
		if !w.failMoves {
			w.moves, _ = time.ParseDuration(f[1])
		}
	case "drain": // drain NODE
		w.node(f[1]).Drain = "is drained"
	case "undrain": // undrain NODE
		n := w.node(f[1])
		n.Drain, n.PowerOff, n.Away = "", false, false
	case "poweroff": // poweroff NODE: it is to reboot, without a drain
		n := w.node(f[1])
		n.Drain, n.PowerOff = "is to reboot", true
	case "away": // away NODE: it goes down as asked
		w.node(f[1]).Away = true
	case "slow": // slow on|off: no placement can be written
		w.slow = f[1] == "on"
	case "hold": // hold on|off: the cluster shuts down
		w.hold = f[1] == "on"
	case "fresh": // fresh NODE on|off
		w.node(f[1]).Fresh = f[2] == "on"
	case "powered": // the manager's process has just begun, and no guard runs anywhere
		w.state.VMs, w.state.Nodes = nil, nil
		w.state.View.Listening = w.now
		for _, v := range w.vms {
			v.guards, v.writerGone = map[ids.ID]*wguard{}, w.now
		}
	case "want":
		w.vm(f[1]).Want = f[2] == "on"
	case "migrate": // migrate VM NODE
		v := w.vm(f[1])
		v.Placement.State, v.Placement.Target = PlaceMigrating, w.node(f[2]).ID
		v.Placement.Attempt++
		w.bump(v)
	case "commit": // the destination's CAS is made
		v := w.vm(f[1])
		v.writer = v.Placement.Target
		delete(v.guards, v.Placement.Node)
		v.guards[v.writer] = &wguard{attempt: v.Placement.Attempt, r: Report{Node: v.writer, Attempt: v.Placement.Attempt, Phase: "running", State: model.VMRunning, Since: w.now}}
		v.Placement = repl.Placement{Node: v.writer, Attempt: v.Placement.Attempt, State: PlaceRunning, Run: v.Placement.Run}
		w.bump(v)
	default:
		w.t.Fatalf("unknown command %q", f)
	}
}

func (w *world) addVM(f []string) {
	v := &wvm{guards: map[ids.ID]*wguard{}, VM: VM{ID: wid(100 + len(w.vms)), Name: f[1], Want: true, HA: model.HAOn, CPUs: 1, Memory: size.GiB, Networks: []string{"lan"}}}
	for _, kv := range f[3:] {
		k, val, _ := strings.Cut(kv, "=")
		switch k {
		case "memory":
			v.Memory, _ = size.Parse(val)
		case "ha":
			v.HA = model.HAMode(val)
		case "priority":
			v.Priority, _ = strconv.Atoi(val)
		case "after":
			v.After = strings.Split(val, ",")
		case "delay":
			v.StartDelay, _ = time.ParseDuration(val)
		case "max-restarts":
			v.MaxRestarts, _ = strconv.Atoi(val)
		default:
			w.t.Fatalf("vm: unknown key %s", k)
		}
	}
	for _, n := range w.nodes {
		v.copies = append(v.copies, n.ID)
	}
	if f[2] != "-" {
		n := w.node(f[2])
		v.writer = n.ID
		v.Placement = repl.Placement{Node: n.ID, Attempt: 1, State: PlaceRunning, Run: wid(1000)}
		v.guards[n.ID] = &wguard{attempt: 1, r: Report{Node: n.ID, Attempt: 1, Phase: "running", State: model.VMRunning, Since: w.now}}
	}
	w.bump(v)
	w.vms = append(w.vms, v)
}

func (w *world) bump(v *wvm) { w.rev++; v.PlacementRev = w.rev }

// turn moves guards on, shows the manager the world and obeys it.
func (w *world) turn(start clock.Instant) {
	w.guards(start)
	w.show()
	var actions []Action
	w.state, actions = Step(w.state, w.now)
	for _, a := range actions {
		fmt.Fprintf(&w.log, "%5.1fs %s\n", w.now.Sub(start).Seconds(), a)
		switch a := a.(type) {
		case SetPlacement:
			if w.slow {
				continue // the write times out
			}
			for _, v := range w.vms {
				if v.ID == a.VM && v.PlacementRev == a.Expect {
					v.Placement = a.Placement
					w.bump(v)
				}
			}
		case SetWant:
			w.vm(a.Name).Want = a.Running
		case SetLosses:
			n := w.byID(a.Node)
			n.Losses, n.Until = a.Losses, a.Until
		case SetHome:
			n := w.byID(a.Node)
			n.Guests = slices.DeleteFunc(n.Guests, func(id ids.ID) bool { return id == a.VM })
			if a.Add {
				n.Guests = append(n.Guests, a.VM)
			}
		}
	}
}

// guards plays the node daemons and guards: 0.3 s from a placement to PREPARE,
// which succeeds 3.3 s after the old writer fell silent; 0.2 s from there to
// running.
func (w *world) guards(start clock.Instant) {
	for _, v := range w.vms {
		p := v.Placement
		n := w.byID(p.Node)
		if p.State == PlaceStopping && n != nil && n.up {
			v.guards[p.Node] = &wguard{attempt: p.Attempt, r: Report{Node: p.Node, Attempt: p.Attempt, Phase: "stopped", Since: w.now}}
			v.writer, v.writerGone = ids.ID{}, 0
		}
		if p.State != PlaceMigrating {
			delete(w.migrating, v.ID)
		} else if w.moves > 0 {
			w.migrate(v, start)
		}
		if p.State == PlaceRunning && n != nil && n.up && v.guards[p.Node] == nil && w.etcd {
			v.guards[p.Node] = &wguard{attempt: p.Attempt, r: Report{Node: p.Node, Attempt: p.Attempt, Phase: "absent", Since: w.now}}
		}
		if p.State != PlaceStarting || n == nil || !n.up || !w.etcd {
			continue
		}
		g := v.guards[p.Node]
		if g == nil || g.attempt != p.Attempt {
			g = &wguard{attempt: p.Attempt, born: w.now, r: Report{Node: p.Node, Attempt: p.Attempt, Phase: "starting", Since: w.now}}
			v.guards[p.Node] = g
		}
		age := w.now.Sub(g.born)
		switch {
		case age < 300*time.Millisecond:
		case n.failStarts != "":
			g.r.Phase, g.r.Reason = "failed", n.failStarts
		case g.r.Phase == "starting":
			g.r.Phase, g.r.Since = "preparing", w.now
			fallthrough
		case g.r.Phase == "preparing":
			if g.r.Waiting = v.waits; v.waits != "" {
				continue
			}
			g.r.Live = !v.writer.IsZero() && v.writerGone == 0
			if v.writer.IsZero() || v.writerGone != 0 && w.now.Sub(v.writerGone) >= 3300*time.Millisecond {
				g.r.Phase, g.r.Since = "opening", w.now
			}
		case g.r.Phase == "opening" && n.sickLink && !p.Stay:
			g.r.WantsMove = "connections to living nodes are lost"
		case g.r.Phase == "opening" && w.now.Sub(g.r.Since) >= 200*time.Millisecond:
			g.r.Phase, g.r.State, g.r.WantsMove = "running", model.VMRunning, ""
			for id := range v.guards {
				if id != p.Node {
					delete(v.guards, id)
				}
			}
			v.writer, v.writerGone = p.Node, 0
			v.Placement.State, v.Placement.Run = PlaceRunning, wid(2000+int(p.Attempt))
			w.bump(v)
			fmt.Fprintf(&w.log, "%5.1fs world %s runs on %s\n", w.now.Sub(start).Seconds(), v.Name, n.Name)
		}
	}
}

// migrate plays the guards of a migration: it commits, or fails, after w.moves.
func (w *world) migrate(v *wvm, start clock.Instant) {
	p := v.Placement
	if w.migrating == nil {
		w.migrating = map[ids.ID]clock.Instant{}
	}
	began, ok := w.migrating[v.ID]
	if !ok {
		w.migrating[v.ID] = w.now
		return
	}
	if w.now.Sub(began) < w.moves {
		return
	}
	delete(w.migrating, v.ID)
	if w.failMoves {
		v.guards[p.Node].r.MigrationOver, v.guards[p.Node].r.MigrationError = p.Attempt, "the stream broke"
		return
	}
	w.command([]string{"commit", v.Name})
	fmt.Fprintf(&w.log, "%5.1fs world %s runs on %s\n", w.now.Sub(start).Seconds(), v.Name, w.byID(v.Placement.Node).Name)
}

// show fills the manager's view.
func (w *world) show() {
	view := &w.state.View
	view.Leader, view.Hold = w.etcd, w.hold
	view.Nodes, view.VMs = nil, nil
	for _, n := range w.nodes {
		if n.up && w.deaf {
			// nothing is heard
		} else if n.up {
			n.LastBeat = w.now
		} else if w.now.Sub(n.diedAt) > 2500*time.Millisecond {
			n.session = false
		}
		n.Storage = n.up && !n.noStorage
		n.Session = n.session
		if n.Session {
			n.SessionLost = 0
		} else if n.SessionLost == 0 {
			n.SessionLost = w.now
		}
		view.Nodes = append(view.Nodes, n.Node)
	}
	for _, v := range w.vms {
		v.Owner = v.writer
		v.Volumes = []place.Volume{{Name: v.Name + "-0", Groups: [][]ids.ID{v.copies}}}
		if v.ToldAlive != 0 && v.writerGone == 0 {
			v.ToldAlive = w.now
		}
		vm := v.VM
		vm.Reports = nil
		for _, g := range v.guards {
			vm.Reports = append(vm.Reports, g.r)
		}
		sort.Slice(vm.Reports, func(i, j int) bool { return vm.Reports[i].Node.Compare(vm.Reports[j].Node) < 0 })
		view.VMs = append(view.VMs, vm)
	}
	slices.Reverse(view.VMs) // no order may be relied on
}
