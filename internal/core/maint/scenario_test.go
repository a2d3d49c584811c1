package maint

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"roseau/internal/base/clock"
	"roseau/internal/base/ids"
	"roseau/internal/base/scenariotest"
	"roseau/internal/model"
)

// TestScenarios runs each testdata/scenarios/<name>/script against a small
// cluster and compares the log with expected.
func TestScenarios(t *testing.T) {
	scenariotest.Run(t, func(t *testing.T, script string) string {
		w := newWorld(t)
		w.run(script)
		return w.log.String()
	})
}

const (
	tick      = 500 * time.Millisecond
	moveTime  = 2 * time.Second // of one VM away or back
	stopTime  = 1 * time.Second // from the power order to silence
	bootTime  = 5 * time.Second
	syncTime  = 4 * time.Second // of a node's copies after its return
	guestTime = 2 * time.Second // of the power button
)

// world is a cluster as far as the conductor sees it: nodes that obey, machines
// that core/ha would move, copies that fall behind and catch up.
type world struct {
	t        *testing.T
	now      clock.Instant
	start    clock.Instant
	view     View
	mem      Memory
	nodes    []*wnode
	vms      []*wvm
	copies   []*wcopy
	log      strings.Builder
	check    func() // after each step; nil: none
	progress map[ids.ID]string
	told     map[string]bool
}

type wnode struct {
	Node
	boot     int
	downAt   clock.Instant // it goes silent then; 0: it stays
	upAt     clock.Instant // it is back then; 0: not by itself
	reboots  bool
	stubborn bool // does not obey
	stays    bool // does not come back by itself
}

type wvm struct {
	VM
	home    ids.ID
	moveAt  clock.Instant
	stuck   bool
	stopped bool
}

// wcopy is a volume with a copy on some nodes; each is in sync or will be.
type wcopy struct {
	name   string
	copies int
	on     map[ids.ID]clock.Instant // in sync from then on
	dead   map[ids.ID]bool          // never again
}

func wid(n int) ids.ID { return ids.MustParse(fmt.Sprintf("00000000-0000-4000-8000-%012d", n)) }

func newWorld(t *testing.T) *world {
	return &world{t: t, now: clock.Instant(time.Hour), start: clock.Instant(time.Hour), progress: map[ids.ID]string{}, told: map[string]bool{}}
}

func (w *world) run(script string) {
	scenariotest.Timed(w.t, script, func(at time.Duration, words []string) {
		for w.now.Sub(w.start) < at {
			w.now = w.now.Add(tick)
			w.turn()
		}
		w.command(words)
	})
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

func (w *world) command(f []string) {
	switch f[0] {
	case "end":
	case "node": // node NAME: the first one has the leader
		n := &wnode{boot: 1, Node: Node{ID: wid(len(w.nodes) + 1), Name: f[1], Up: true, Storage: true, Boot: f[1] + "/1"}}
		w.nodes = append(w.nodes, n)
		w.view.Self = w.nodes[0].ID
	case "vm": // vm NAME NODE
		n := w.node(f[2])
		w.vms = append(w.vms, &wvm{home: n.ID, VM: VM{ID: wid(100 + len(w.vms)), Name: f[1], Node: n.ID}})
	case "volume": // volume NAME COPIES NODE...
		c := &wcopy{name: f[1], copies: len(f[2]), on: map[ids.ID]clock.Instant{}, dead: map[ids.ID]bool{}}
		fmt.Sscan(f[2], &c.copies)
		for _, name := range f[3:] {
			c.on[w.node(name).ID] = w.now
		}
		w.copies = append(w.copies, c)
	case "order": // order NODE shutdown|reboot [no-drain]
		n := w.node(f[1])
		n.Order = &model.NodeOrder{Verb: model.OrderVerb(f[2]), Phase: model.OrderDraining, Boot: n.Boot, NoDrain: len(f) > 3, Task: wid(500)}
	case "drain":
		n := w.node(f[1])
		n.Drain, n.Task = true, wid(501)
	case "undrain":
		n := w.node(f[1])
		n.Drain, n.Order = false, nil
	case "stuck": // stuck VM on|off
		for _, v := range w.vms {
			if v.Name == f[1] {
				v.stuck = f[2] == "on"
			}
		}
	case "needed": // needed NODE on|off: its vote decides
		n := w.node(f[1])
		n.Needed = ""
		if f[2] == "on" {
			n.Needed = "its vote is needed"
		}
	case "stale": // stale NODE on|off: no beat of its present boot has come
		w.node(f[1]).Stale = f[2] == "on"
	case "broken": // broken VOLUME NODE: its copy there is lost for good
		for _, c := range w.copies {
			if c.name == f[1] {
				c.dead[w.node(f[2]).ID] = true
			}
		}
	case "mended":
		for _, c := range w.copies {
			if c.name == f[1] {
				delete(c.dead, w.node(f[2]).ID)
			}
		}
	case "stubborn": // stubborn NODE: it does not go down
		w.node(f[1]).stubborn = true
	case "stays": // stays NODE: it does not come back
		w.node(f[1]).stays = true
	case "cut": // cut NODE: no power, unasked
		w.silence(w.node(f[1]))
	case "power": // power NODE: it gets power
		n := w.node(f[1])
		n.stays, n.upAt = false, w.now.Add(bootTime)
	case "leader": // leader NODE: a new conductor, without memory
		w.view.Self, w.mem = w.node(f[1]).ID, Memory{}
	case "restart", "shutdown": // of the cluster
		p := &Plan{Kind: PlanKind(f[0]), Task: wid(502), VMs: len(w.vms)}
		if p.Kind == Shutdown {
			p.Phase = Guests
		}
		for _, n := range w.nodes {
			m := Member{ID: n.ID, Name: n.Name, State: Waits}
			if p.Kind == Shutdown {
				m.Boot = n.Boot
			}
			p.Nodes = append(p.Nodes, m)
		}
		w.view.Plan = p
	case "cancel":
		p := *w.view.Plan
		p.Cancel = true
		w.view.Plan = &p
	default:
		w.t.Fatalf("unknown command %q", f)
	}
}

func (w *world) silence(n *wnode) {
	n.Up, n.Boot, n.Storage, n.downAt = false, "", false, 0
	for _, c := range w.copies {
		if _, ok := c.on[n.ID]; ok {
			c.on[n.ID] = 0 // not in sync until it is back
		}
	}
	if w.view.Self == n.ID { // another node leads
		w.mem = Memory{}
		for _, o := range w.nodes {
			if o.Up {
				w.view.Self = o.ID
				break
			}
		}
	}
}

// turn lets the world go on by a tick, then the conductor look at it.
func (w *world) turn() {
	for _, n := range w.nodes {
		if n.downAt != 0 && w.now >= n.downAt {
			w.silence(n)
			if n.reboots && !n.stays {
				n.upAt = w.now.Add(bootTime)
			}
		}
		if n.upAt != 0 && w.now >= n.upAt {
			n.boot++
			n.Up, n.Storage, n.Boot, n.upAt = true, true, fmt.Sprintf("%s/%d", n.Name, n.boot), 0
			for _, c := range w.copies {
				if _, ok := c.on[n.ID]; ok {
					c.on[n.ID] = w.now.Add(syncTime)
				}
			}
		}
	}
	w.moveVMs()
	w.show()
	if !slices.ContainsFunc(w.nodes, func(n *wnode) bool { return n.Up }) {
		return
	}
	w.untold()
	st, actions := Step(State{View: w.view, Memory: w.mem}, w.now)
	w.mem = st.Memory
	changed := slices.ContainsFunc(actions, func(a Action) bool { _, ok := a.(Change); return ok })
	for _, a := range actions {
		if e, ok := a.(End); ok && e.Drained.IsZero() && !changed {
			w.t.Errorf("%s ends without the change that it ends by", e)
		}
		w.obey(a)
	}
	if w.check != nil {
		w.check()
	}
}

// untold plays the nodes that go off by themselves.
func (w *world) untold() {
	for _, n := range w.nodes {
		if n.Up && n.downAt == 0 && LastToGo(w.view.Plan, n.ID, n.Boot, func(o ids.ID) bool { return w.byID(o).Up }) {
			w.note(n.Name + " goes off untold")
			n.downAt = w.now.Add(stopTime)
		}
	}
}

// majority of the nodes up.
func (w *world) majority() bool {
	up := 0
	for _, n := range w.nodes {
		if n.Up {
			up++
		}
	}
	return 2*up > len(w.nodes)
}

// moveVMs plays core/ha.
func (w *world) moveVMs() {
	hold := w.view.Plan != nil && w.view.Plan.Kind == Shutdown && !w.view.Plan.Cancel
	for _, v := range w.vms {
		if v.stopped {
			if h := w.byID(v.home); !hold && h.Up {
				v.stopped, v.Node = false, v.home
				h.Guests = slices.DeleteFunc(h.Guests, func(id ids.ID) bool { return id == v.ID })
			}
			continue
		}
		n, home := w.byID(v.Node), w.byID(v.home)
		if n.ID == home.ID && !home.Drain && home.Order == nil {
			home.Guests = slices.DeleteFunc(home.Guests, func(id ids.ID) bool { return id == v.ID })
		}
		leave := n.Drain || n.Order != nil
		back := n.ID != home.ID && !home.Drain && home.Order == nil && home.Up
		if v.stuck || !hold && !leave && !back {
			v.moveAt = 0
			continue
		}
		if leave && n.ID == v.home && !slices.Contains(n.Guests, v.ID) {
			n.Guests = append(n.Guests, v.ID)
		}
		if v.moveAt == 0 {
			v.moveAt = w.now.Add(moveTime)
			continue
		}
		if w.now < v.moveAt {
			continue
		}
		v.moveAt = 0
		switch {
		case hold:
			v.stopped = true
		case back:
			v.Node = v.home
			home.Guests = slices.DeleteFunc(home.Guests, func(id ids.ID) bool { return id == v.ID })
		default:
			for _, o := range w.nodes {
				if o.ID != n.ID && o.Up && !o.Drain && o.Order == nil {
					v.Node = o.ID
					break
				}
			}
		}
	}
}

func (w *world) show() {
	// Nobody conducts what is left of a cluster that goes off.
	w.view.Leader = w.view.Plan == nil || w.view.Plan.Phase != Off || w.majority()
	w.view.Nodes, w.view.VMs, w.view.Volumes = nil, nil, nil
	for _, n := range w.nodes {
		w.view.Nodes = append(w.view.Nodes, n.Node)
	}
	for _, v := range w.vms {
		if !v.stopped {
			w.view.VMs = append(w.view.VMs, v.VM)
		}
	}
	for _, c := range w.copies {
		var g Group
		for _, n := range w.nodes {
			since, ok := c.on[n.ID]
			if !ok {
				continue
			}
			g.All = append(g.All, n.ID)
			if since != 0 && since <= w.now && !c.dead[n.ID] {
				g.In = append(g.In, n.ID)
			}
		}
		w.view.Volumes = append(w.view.Volumes, Volume{Name: c.name, Copies: c.copies, Groups: []Group{g}})
	}
	slices.Reverse(w.view.Nodes) // no order may be relied on
}

func (w *world) obey(a Action) {
	text := a.String()
	switch a := a.(type) { // shown when it changes
	case Progress:
		if w.progress[a.Task] == text {
			return
		}
		w.progress[a.Task] = text
	case Power:
		text += " " + a.Boot
		if w.told[text] {
			text = ""
		} else {
			w.told[text] = true
		}
	}
	if text != "" {
		w.note(text)
	}
	switch a := a.(type) {
	case Change:
		if n := w.byID(a.Node); n != nil {
			n.Order = a.Order
			n.Guests = slices.DeleteFunc(n.Guests, func(id ids.ID) bool { return slices.Contains(a.Forget, id) })
		}
		if a.WritePlan {
			w.view.Plan = a.Plan
		}
	case Power:
		n := w.byID(a.Node)
		if !n.stubborn && n.Boot == a.Boot && n.downAt == 0 {
			n.downAt, n.reboots = w.now.Add(stopTime), a.Verb == model.OrderReboot
		}
	case End:
		if n := w.byID(a.Drained); n != nil {
			n.Task = ids.ID{}
		}
	}
}

func (w *world) note(text string) {
	fmt.Fprintf(&w.log, "%5.1fs %s\n", w.now.Sub(w.start).Seconds(), text)
}

// Of a node's guests those that run are let go by --no-failback; what waits for it
// does not start elsewhere.
func TestPlaced(t *testing.T) {
	got := Placed([]ids.ID{wid(1), wid(2), wid(3)}, []VM{{ID: wid(2), Node: wid(9)}, {ID: wid(4), Node: wid(9)}})
	if !slices.Equal(got, []ids.ID{wid(2)}) {
		t.Errorf("placed: %v", got)
	}
}

// Who goes off untold: only the last one, under the boot that the plan is for.
func TestLastToGo(t *testing.T) {
	p := Plan{Kind: Shutdown, Phase: Off, Nodes: []Member{{ID: wid(1), Boot: "a"}, {ID: wid(2), Boot: "b"}, {ID: wid(3)}}}
	none, all := func(ids.ID) bool { return false }, func(ids.ID) bool { return true }
	alone := p
	alone.Nodes = []Member{{ID: wid(1), Boot: "a"}, {ID: wid(3)}}
	guests, restart := p, p
	guests.Phase, restart.Kind = Guests, Restart
	for _, c := range []struct {
		what  string
		plan  *Plan
		self  int
		boot  string
		heard func(ids.ID) bool
		want  bool
	}{
		{"hears none", &p, 1, "a", none, true},
		{"hears others", &p, 1, "a", all, false},
		{"hears one that was off before", &p, 1, "a", func(n ids.ID) bool { return n == wid(3) }, true},
		{"under another boot", &p, 1, "a2", none, false},
		{"was off when it was asked for", &p, 3, "", none, false},
		{"is not of the plan", &p, 4, "d", none, false},
		{"conducts for itself", &alone, 1, "a", none, false},
		{"machines are on", &guests, 1, "a", none, false},
		{"rolling restart", &restart, 1, "a", none, false},
		{"no plan", nil, 1, "a", none, false},
	} {
		if got := LastToGo(c.plan, wid(c.self), c.boot, c.heard); got != c.want {
			t.Errorf("%s: goes %v, want %v", c.what, got, c.want)
		}
	}
}
