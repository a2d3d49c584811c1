package hasim

import (
	"context"
	"fmt"
	"runtime"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"roseau/internal/base/ids"
	"roseau/internal/base/size"
	"roseau/internal/core/balance"
	"roseau/internal/core/ha"
	"roseau/internal/core/repl"
	"roseau/internal/model"
)

// Result is what one run found.
type Result struct {
	Seed                uint64
	Nodes, VMs          int
	Cuts, Starts, Moves int
	Placements          int // decisions that the manager made
	Err                 error

	restarts []time.Duration // from the loss of a VM to its running, where it could run all the time
	steps    []time.Duration // time on a processor of steps that placed nothing
	busy     []time.Duration // of steps that placed something
	perPlace []time.Duration // of those, divided by what was placed
	plans    []time.Duration // of the balancer's plans
}

// Bounds that the checkers hold the manager to.
const (
	// quietAfter is how long after the last fault everything runs: a dependency that
	// cannot start holds others for two minutes, a start that failed is tried again
	// after 32 s at most.
	quietAfter = 3 * time.Minute
	// startBound is how long a VM may be down while a node that can take it is there
	// all the time and nothing else fails: lease, detection and slots.
	startBound = 12 * time.Second
)

func (w *world) fail(format string, args ...any) {
	if w.res.Err == nil {
		w.res.Err = fmt.Errorf("at %.1fs: %s", w.now.Sub(w.start).Seconds(), fmt.Sprintf(format, args...))
	}
}

// Run runs one seed. The thread's clock is read to time the decisions, and for
// nothing else.
func Run(ctx context.Context, o Options) *Result {
	w := newWorld(o)
	end := w.start.Add(w.o.Time)
	next := w.start.Add(2 * time.Second)
	for w.now.Before(end) && w.res.Err == nil && ctx.Err() == nil {
		w.now = w.now.Add(tick)
		if !w.now.Before(next) {
			w.fault()
			next = w.now.Add(time.Duration(200+w.rnd.IntN(8000)) * time.Millisecond)
		}
		w.turn()
	}
	w.mend()
	for quiet := w.now.Add(quietAfter); w.now.Before(quiet) && w.res.Err == nil && ctx.Err() == nil; {
		w.now = w.now.Add(tick)
		w.turn()
	}
	w.final()
	return w.res
}

// fault draws one.
func (w *world) fault() {
	i := w.rnd.IntN(len(w.nodes))
	n := w.nodes[i]
	v := w.vms[w.rnd.IntN(len(w.vms))]
	kind := w.rnd.IntN(14)
	if w.o.ControlPlaneOnly && kind >= 7 {
		kind %= 7
	}
	switch kind {
	case 0:
		w.etcd = !w.etcd
		w.state.View.LeaderSince = w.now
		w.trace("etcd has a leader: %v", w.etcd)
	case 1: // another manager, without memory, which heard all beats
		w.state.VMs, w.state.Nodes, w.state.Deaf = nil, nil, false
		w.trace("another manager")
	case 2:
		w.deaf = !w.deaf && len(w.nodes) >= 6
		w.trace("the manager is deaf: %v", w.deaf)
	case 3, 4:
		n.noLease = !n.noLease
		w.trace("%s can keep no session: %v", n.Name, n.noLease)
	case 5, 6:
		n.silenced = !n.silenced
		w.trace("%s is not heard: %v", n.Name, n.silenced)
	case 7, 8, 9:
		w.cutOrRestore()
	case 10:
		n.broken = !n.broken
		w.trace("no guard starts on %s: %v", n.Name, n.broken)
	case 11: // a guard falls over
		if g := v.guards[max(v.writer, 0)]; v.runs() && g != nil && v.Placement.State == ha.PlaceRunning {
			g.r.Phase, g.r.Reason, g.r.Since = "failed", "qemu ended: signal 11", w.now
			w.silence(v)
			w.trace("%s falls over", v.Name)
		}
	case 12: // its storage link is sick
		if g := v.guards[max(v.writer, 0)]; v.runs() && g != nil && v.Placement.State == ha.PlaceRunning {
			g.r.State, g.r.Stalled, g.r.Seen = model.VMPausedLease, 1, w.now
			w.silence(v)
			w.trace("%s stalls", v.Name)
		}
	case 13:
		w.migrate(v)
	}
}

// cutOrRestore keeps the nodes that are down to two, or a third.
func (w *world) cutOrRestore() {
	var down []int
	for i, n := range w.nodes {
		if !n.up {
			down = append(down, i)
		}
	}
	if len(down) >= max(1, min(len(w.nodes)/3, 2)) || len(down) > 0 && w.rnd.IntN(2) == 0 {
		w.restore(down[w.rnd.IntN(len(down))])
		return
	}
	if i := w.rnd.IntN(len(w.nodes)); w.nodes[i].up {
		w.cut(i)
	}
}

// migrate is `vm migrate` without a node.
func (w *world) migrate(v *vm) {
	if !v.runs() || v.Placement.State != ha.PlaceRunning || !w.etcd {
		return
	}
	d, err := ha.Choose(w.state.View, v.ID, map[ids.ID]string{v.Placement.Node: "it runs there"}, w.now)
	if err != nil {
		return
	}
	v.Placement = repl.Placement{Node: v.Placement.Node, Attempt: v.Placement.Attempt + 1, State: ha.PlaceMigrating, Target: d.Node, Run: v.Placement.Run}
	v.moveAt = w.now.Add(migrateTime)
	w.checkRules(v, d.Node)
	w.bump(v)
}

// mend ends all faults.
func (w *world) mend() {
	w.trace("all is mended")
	w.deaf = false
	if !w.etcd {
		w.etcd = true
		w.state.View.LeaderSince = w.now
	}
	for i, n := range w.nodes {
		n.silenced, n.noLease, n.broken = false, false, false
		if !n.up {
			w.restore(i)
		}
	}
}

// turn moves the world, shows it to the manager and obeys it.
func (w *world) turn() {
	w.play()
	w.show()
	var state ha.State
	var actions []ha.Action
	took := onCPU(func() { state, actions = ha.Step(w.state, w.now) })
	for _, v := range w.vms {
		w.before[v.ID] = w.state.VMs[v.ID].State // as it was when the manager counted
	}
	w.state = state
	placed := 0
	for _, a := range actions {
		if p, ok := a.(ha.SetPlacement); ok {
			placed++
			w.place(p)
		}
		if w.o.Trace != nil {
			w.trace("  %s", a)
		}
	}
	w.res.Placements += placed
	if placed > 0 {
		w.res.busy = append(w.res.busy, took)
		w.res.perPlace = append(w.res.perPlace, took/time.Duration(placed))
	} else {
		w.res.steps = append(w.res.steps, took)
	}
	if w.now.Sub(w.start)%(10*time.Second) == 0 {
		w.res.plans = append(w.res.plans, onCPU(func() { balance.Plan(ha.Balance(w.state.View, w.now), balance.Params{}, nil) }))
	}
	w.check()
}

// place carries a placement out, if etcd can and its revision is still the newest.
func (w *world) place(a ha.SetPlacement) {
	v := w.vms[w.vmAt[a.VM]]
	if !w.etcd {
		w.fail("%s is placed without etcd", v.Name)
	}
	if v.PlacementRev != a.Expect {
		return
	}
	if a.Placement.State == ha.PlaceStarting {
		w.checkStart(v, a)
	}
	v.Placement = a.Placement
	if i, ok := w.at[a.Placement.Node]; ok && a.Placement.State == ha.PlaceRunning && v.writer == i {
		// Taken back: what the abandoned guards were doing ends.
		for n := range v.guards {
			if n != i {
				delete(v.guards, n)
			}
		}
	}
	w.bump(v)
}

// show fills the view.
func (w *world) show() {
	view := &w.state.View
	view.Leader = w.etcd
	view.Nodes = make([]ha.Node, 0, len(w.nodes))
	used := make([]size.Bytes, len(w.nodes))
	for _, v := range w.vms {
		if v.writer >= 0 {
			used[v.writer] += v.Memory
		}
	}
	for _, n := range w.nodes {
		view.Nodes = append(view.Nodes, n.Node)
	}
	for i := range view.Nodes {
		view.Nodes[i].MemoryFree -= min(view.Nodes[i].MemoryFree, used[i])
	}
	view.VMs = make([]ha.VM, 0, len(w.vms))
	for _, v := range w.vms {
		x := v.VM
		x.Owner = ids.ID{}
		if v.writer >= 0 {
			x.Owner = nodeID(v.writer)
			if v.runs() && !w.nodes[v.writer].silenced && !w.deaf {
				x.ToldAlive = w.now
			}
		}
		x.Reports = make([]ha.Report, 0, 2)
		for _, i := range sortedKeys(v.guards) {
			x.Reports = append(x.Reports, v.guards[i].r)
		}
		view.VMs = append(view.VMs, x)
	}
}

func sortedKeys(m map[int]*guard) []int {
	if len(m) == 1 {
		for k := range m {
			return []int{k}
		}
	}
	out := make([]int, 0, len(m))
	for k := range m {
		out = append(out, k)
	}
	slices.Sort(out)
	return out
}

// checkRules: no decision of the manager breaks a hard rule.
func (w *world) checkRules(v *vm, to ids.ID) {
	for _, r := range w.rules {
		if !slices.Contains(r.VMs, v.Name) {
			continue
		}
		for _, o := range w.vms {
			if o != v && slices.Contains(r.VMs, o.Name) && o.Placement.State != ha.PlaceStopped && (o.Placement.Node == to || o.Placement.Target == to) {
				w.fail("%s is placed on %s beside %s, against rule %s", v.Name, w.nodes[w.at[to]].Name, o.Name, r.Name)
			}
		}
	}
}

// checkStart judges a start: rules, order and slots.
func (w *world) checkStart(v *vm, a ha.SetPlacement) {
	to := a.Placement.Node
	w.checkRules(v, to)
	var starting []string
	for _, o := range w.vms {
		if o != v && o.Placement.State == ha.PlaceStarting && o.Placement.Node == to && w.before[o.ID] != model.VMWaitingForCopy {
			starting = append(starting, fmt.Sprintf("%s (%s)", o.Name, w.before[o.ID]))
		}
	}
	if len(starting) >= ha.Defaults.StartsANode {
		w.fail("%s is placed on %s, where %v are starting", v.Name, a.NodeName, starting)
	}
	for _, name := range v.After {
		for _, o := range w.vms {
			held := w.state.VMs[v.ID].HeldSince
			if o.Name == name && !o.runs() && o.Placement.State != ha.PlaceRunning && w.state.VMs[o.ID].State != model.VMFailed &&
				(held == 0 || w.now.Sub(held) <= ha.Defaults.HoldLimit) {
				w.fail("%s is started before %s, which is %s", v.Name, name, w.state.VMs[o.ID].State)
			}
		}
	}
}

// check looks at the world after each step.
func (w *world) check() {
	if !w.o.ControlPlaneOnly {
		return
	}
	for _, v := range w.vms {
		if v.touched > 0 || !v.runs() {
			w.fail("%s was touched though only the control plane suffered", v.Name)
		}
	}
}

// final: with all mended and time gone by, everything runs where it is placed.
func (w *world) final() {
	for _, v := range w.vms {
		if w.res.Err == nil && (!v.runs() || v.Placement.State != ha.PlaceRunning || v.Placement.Node != nodeID(v.writer)) {
			w.fail("%s does not run %s after the last fault: placed %s, state %s: %s", v.Name, quietAfter, v.Placement.State, w.state.VMs[v.ID].State, w.state.VMs[v.ID].Reason)
		}
	}
}

// Loss cuts one node of a quiet world and returns how long each of its machines
// took to run elsewhere; one that takes longer than startBound is an error.
func Loss(o Options) *Result {
	w := newWorld(o)
	for range 20 {
		w.now = w.now.Add(tick)
		w.turn()
	}
	w.cut(w.rnd.IntN(len(w.nodes)))
	for until := w.now.Add(startBound + time.Second); w.now.Before(until) && w.res.Err == nil; {
		w.now = w.now.Add(tick)
		w.turn()
	}
	for _, v := range w.vms {
		if v.lostAt != 0 && len(v.After) == 0 {
			w.fail("%s is not back after %s: %s", v.Name, startBound, w.state.VMs[v.ID].Reason)
		}
	}
	return w.res
}

// onCPU runs f and returns how long its thread had a processor meanwhile: what a
// decision costs, whatever else the machine does.
func onCPU(f func()) time.Duration {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	clock := func() time.Duration {
		var ts unix.Timespec
		if err := unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &ts); err != nil {
			panic("hasim: read the thread's clock: " + err.Error()) // it always has one
		}
		return time.Duration(ts.Nano())
	}
	began := clock()
	f()
	return clock() - began
}
