package maint

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"roseau/internal/base/ids"
	"roseau/internal/model"
)

var worlds = flag.Int("worlds", 300, "random worlds of TestRandomWorlds")

// TestRandomWorlds drives random clusters through random orders and faults, and
// judges each step by the invariants; at the end, with every fault mended, what
// was ordered must be done.
func TestRandomWorlds(t *testing.T) {
	finished := 0
	for seed := range uint64(*worlds) {
		r := rand.New(rand.NewPCG(seed, 7))
		w := newWorld(t)
		j := &judge{w: w, seed: seed}
		w.check = j.judge
		j.build(r)
		for range 20 {
			j.fault(r)
			for range r.IntN(12) + 1 {
				w.now = w.now.Add(tick)
				w.turn()
			}
		}
		j.mend()
		for range 1200 { // 600 s, more than a node that does not obey is waited for
			for _, n := range w.nodes {
				if !n.Up && n.upAt == 0 { // somebody presses its power button
					n.upAt = w.now.Add(bootTime)
				}
			}
			w.now = w.now.Add(tick)
			w.turn()
		}
		j.end()
		finished += j.leaves
		if t.Failed() {
			t.Fatalf("seed %d\n%s", seed, w.log.String())
		}
	}
	if finished < *worlds {
		t.Errorf("%d nodes went down in %d worlds: the test sees too little", finished, *worlds)
	}
}

// judge compares what the conductor does with the rules, counted anew.
type judge struct {
	w      *world
	seed   uint64
	phase  map[ids.ID]model.OrderPhase
	leaves int
}

func (j *judge) build(r *rand.Rand) {
	j.phase = map[ids.ID]model.OrderPhase{}
	n := 3 + r.IntN(3)
	for i := range n {
		j.w.command([]string{"node", fmt.Sprintf("n%d", i+1)})
	}
	name := func(i int) string { return j.w.nodes[i].Name }
	for i := range r.IntN(6) {
		j.w.command([]string{"vm", fmt.Sprintf("v%d", i), name(r.IntN(n))})
	}
	for i := range 1 + r.IntN(4) {
		copies := 2 + r.IntN(2)
		f := []string{"volume", fmt.Sprintf("d%d", i), fmt.Sprint(copies)}
		for _, k := range r.Perm(n)[:copies] {
			f = append(f, name(k))
		}
		j.w.command(f)
	}
}

// fault does one thing to the cluster.
func (j *judge) fault(r *rand.Rand) {
	w := j.w
	n := w.nodes[r.IntN(len(w.nodes))]
	switch r.IntN(9) {
	case 0:
		if n.Order == nil && n.Up && !n.Drain && w.view.Plan == nil {
			w.command([]string{"order", n.Name, []string{"reboot", "shutdown"}[r.IntN(2)]})
		}
	case 1:
		if w.view.Plan == nil && r.IntN(2) == 0 {
			w.command([]string{"restart"})
		}
	case 2:
		up := 0
		for _, o := range w.nodes {
			if o.Up {
				up++
			}
		}
		if n.Up && up > 2 { // its power goes; machines restart elsewhere
			w.silence(n)
			for _, v := range w.vms {
				for _, o := range w.nodes {
					if v.Node == n.ID && o.Up && !o.Drain && o.Order == nil {
						v.Node, v.moveAt = o.ID, 0
					}
				}
			}
			n.upAt = w.now.Add(time.Duration(r.IntN(20)) * time.Second)
		}
	case 3:
		if len(w.vms) > 0 {
			w.vms[r.IntN(len(w.vms))].stuck = r.IntN(2) == 0
		}
	case 4:
		c := w.copies[r.IntN(len(w.copies))]
		if _, ok := c.on[n.ID]; ok {
			c.dead[n.ID] = r.IntN(2) == 0
		}
	case 5:
		if n.Up {
			w.command([]string{"leader", n.Name})
		}
	case 6:
		if w.view.Plan != nil && r.IntN(3) == 0 {
			w.command([]string{"cancel"})
		}
	case 7:
		n.stubborn = r.IntN(3) == 0
	case 8:
		if n.Order == nil || n.Order.Phase == model.OrderDraining {
			n.Drain = !n.Drain && n.Order == nil
		}
	}
}

// mend takes every fault back.
func (j *judge) mend() {
	for _, n := range j.w.nodes {
		n.stubborn, n.stays, n.Drain = false, false, false
	}
	for _, v := range j.w.vms {
		v.stuck = false
	}
	for _, c := range j.w.copies {
		c.dead = map[ids.ID]bool{}
	}
}

// judge is called after each step, when the world has not moved since the
// conductor looked at it.
func (j *judge) judge() {
	w := j.w
	down := 0
	for _, n := range w.nodes {
		var phase model.OrderPhase
		if n.Order != nil {
			phase = n.Order.Phase
		}
		if phase == model.OrderLeaving || phase == model.OrderAway {
			down++
		}
		was := j.phase[n.ID]
		j.phase[n.ID] = phase
		if phase == model.OrderLeaving && was != model.OrderLeaving {
			j.leaves++
			j.mayGo(n)
		}
		if phase == model.OrderAway && was != model.OrderLeaving && was != model.OrderAway {
			w.t.Errorf("%s is away without having left", n.Name)
		}
		if n.downAt != 0 && n.Order == nil {
			w.t.Errorf("%s goes down without an order", n.Name)
		}
	}
	if down > 1 {
		w.t.Errorf("%d nodes are down for maintenance at one time", down)
	}
}

func (j *judge) mayGo(n *wnode) {
	w := j.w
	for _, v := range w.vms {
		if !v.stopped && v.Node == n.ID {
			w.t.Errorf("%s goes down with %s on it", n.Name, v.Name)
		}
	}
	for _, c := range w.copies {
		if _, ok := c.on[n.ID]; !ok {
			continue
		}
		left := 0
		for id, since := range c.on {
			if o := w.byID(id); id != n.ID && o.Up && since != 0 && since <= w.now && !c.dead[id] {
				left++
			}
		}
		if left < c.copies-1 && left < 2 {
			w.t.Errorf("%s goes down and leaves %s with %d copies of %d", n.Name, c.name, left, c.copies)
		}
	}
}

// end demands that nothing is left undone.
func (j *judge) end() {
	w := j.w
	if w.view.Plan != nil {
		w.t.Errorf("the plan has not ended: %s", w.view.Plan.text())
	}
	for _, n := range w.nodes {
		if n.Order != nil || !n.Up || len(n.Guests) > 0 {
			w.t.Errorf("%s: up %v, order %+v, %d guests not back", n.Name, n.Up, n.Order, len(n.Guests))
		}
	}
	if slices.ContainsFunc(w.vms, func(v *wvm) bool { return !w.byID(v.Node).Up }) {
		w.t.Error("a machine is left on a node that is off")
	}
}
