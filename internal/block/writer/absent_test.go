package writer

import (
	"testing"
	"time"

	"roseau/internal/block/wire"
	"roseau/internal/core/repl"
)

// asked takes the core's messages and returns the newest OPEN for a disk, or nil.
func asked(c *Core, m *member) (o *wire.Open) {
	for _, s := range c.Ready().Sends {
		if x, ok := s.Msg.(*wire.Open); ok && x.Disk == m.disk {
			o = x
		}
	}
	return o
}

// At a takeover a copy counts as failed only when the process that now runs on its
// node has said that it does not have the disk; not when HELLO does not name it yet,
// and not by what an earlier process said.
func TestAbsenceMustBeSaid(t *testing.T) {
	w := quiet(t, Mutations{})
	g := w.served(time.Second)
	c := g.core
	m := c.vols[0].members[1]
	g.alive = false // from here on the core is driven by hand
	now := w.now
	step := func(ev Event) {
		now = now.Add(time.Millisecond)
		c.Step(now, ev)
	}
	hello := func() *wire.Open {
		step(ConnUp{Node: m.node.id, Session: w.newID()})
		return asked(c, m)
	}
	answer := func(o *wire.Open, st wire.Status) {
		t.Helper()
		if o == nil {
			t.Fatal("the disk that HELLO does not name is not asked for")
		}
		step(&Received{Node: m.node.id, Msg: &wire.OpenAck{ReqID: o.ReqID, Status: st}})
	}
	want := func(what string, maybe bool, why repl.OutReason) {
		t.Helper()
		if got := !m.absent || m.unsure; got != maybe || m.whyMissing() != why {
			t.Errorf("%s: may come %v, reason %q; want %v, %q", what, got, m.whyMissing(), maybe, why)
		}
	}
	for _, n := range c.nodes {
		step(ConnDown{Node: n.id})
	}
	c.beginOpening()
	o := hello()
	want("HELLO does not name it", true, repl.OutMissing)
	answer(o, wire.Busy)
	want("it is being opened", true, repl.OutMissing)
	now = now.Add(c.t.OpenRetry)
	c.Tick(now)
	answer(asked(c, m), wire.DiskFailed)
	want("its node does not have it", false, repl.OutDiskFailed)
	step(ConnDown{Node: m.node.id})
	want("its node is away since", true, repl.OutMissing)
	answer(hello(), wire.DiskFailed)
	want("the next process does not have it either", false, repl.OutDiskFailed)
}
