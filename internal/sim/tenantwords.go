package sim

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"time"

	"roseau/internal/base/clock"
	"roseau/internal/base/ids"
	"roseau/internal/block/writer"
)

// Words about several volumes on the same disks. `two-volumes` comes first; then a
// word stands for the first volume, and for the second behind `vol2`.

// ofFirst are words that only the first volume knows.
var ofFirst = []string{"snapshot", "rollback", "parent", "lost", "etcd", "vol2"}

// vol2 WORD...: the word is about the second volume and its VM.
func (p *player) vol2(a []string) error {
	if len(p.w.tenants) < 2 || len(a) == 0 || slices.Contains(ofFirst, a[0]) {
		return errors.New("want a word that the second volume knows, after two-volumes")
	}
	do, ok := scriptWords[a[0]]
	if !ok {
		return errors.New("no such word")
	}
	p.t = p.w.tenants[1]
	defer func() { p.t = p.w.tenant }()
	return do(p, a[1:])
}

// wrap N: the guest writes until the log of each disk that holds the volume has gone
// round N times. No answer may take longer than a second, whatever becomes of other
// volumes (I17).
func (p *player) wrap(a []string) error {
	rounds, err := strconv.Atoi(a[0])
	if err != nil || rounds < 1 {
		return errors.New("want a number of rounds")
	}
	w, m := p.w, p.t.guest
	var goals []func() bool
	for _, n := range w.nodes {
		for _, d := range n.disks {
			if e := n.engines[d.id]; e != nil && placed(p.t.record().Seg, d.id) {
				goal := e.Stats().HeadLSN + uint64(rounds)*ringBytes
				goals = append(goals, func() bool { return n.engines[d.id] == nil || n.engines[d.id].Stats().HeadLSN >= goal })
			}
		}
	}
	for i := 0; slices.ContainsFunc(goals, func(there func() bool) bool { return !there() }); i++ {
		if m.guard == nil || !m.alive || i == 10000 {
			return errors.New("no guest runs, or the log does not go round")
		}
		// Extents in turn, and the same blocks again: only the first are fresh.
		r := m.put(writer.OpWrite, i%extentCount*extentBlocks+200, 32, false)
		if !w.run(w.now.Add(time.Second), func() bool { return m.pending[r.id] == nil }) {
			w.failf("a write waits longer than a second although its own volume is well: %s", w.describe())
			return nil
		}
	}
	return nil
}

// steady on|off: between the two the guest is served all the time, by the same guard,
// and nothing that it asks for takes longer than a second.
func (p *player) steady(a []string) error {
	w, t := p.w, p.t
	switch {
	case len(a) != 1 || a[0] != "on" && a[0] != "off":
		return errors.New("want on or off")
	case a[0] == "off":
		t.steady = ids.ID{}
		return nil
	}
	g := t.manager.active
	if g == nil || g.ended() || t.guest.guard != g {
		return errors.New("no guard serves")
	}
	t.steady = g.id
	since := map[uint64]clock.Instant{}
	var look func()
	look = func() {
		if t.steady != g.id {
			return
		}
		for id := range t.guest.pending { // order does not show
			if since[id] == 0 {
				since[id] = w.now
			}
			if w.now.Sub(since[id]) > time.Second {
				w.failf("request %d waits longer than a second although its own volume is well: %s", id, w.describe())
			}
		}
		if t.guest.guard != g || g.ended() || g.state != writer.Serving || !g.leaseHeld() {
			w.failf("%s does not serve any more although its own volume is well: %s", g.name(), w.describe())
		}
		w.after(20*time.Millisecond, look)
	}
	look()
	return nil
}

// freed: no disk holds anything of a deleted volume.
func (w *world) freed() bool {
	return w.leftOver() == ""
}

// heldWindow nX N: the disk there would tell a taker of at least N records of the
// volume that not every copy is known to have.
func (p *player) heldWindow(n *node, a []string) (func() bool, error) {
	if len(a) != 1 {
		return nil, fmt.Errorf("want a node and a number of records")
	}
	want, err := strconv.Atoi(a[0])
	t := p.t
	return func() bool {
		have := 0
		for _, d := range n.disks {
			if e := n.engines[d.id]; e != nil {
				if info, ok := e.Volume(t.volume); ok {
					have += len(e.Window(t.volume, info.FlushMark))
				}
			}
		}
		return have >= want
	}, err
}

// pace D: under load the guest issues a request each D at most.
func (p *player) pace(a []string) (err error) {
	p.t.guest.pace, err = p.duration(a[0])
	return err
}

// tail nX: a disk's medium has another superblock than now, so a checkpoint has moved
// the log's tail this very moment.
func (p *player) tailMoved(n *node) func() bool {
	super := func(d *simDisk) (page [4096]byte) {
		if now := d.durable[0]; now != nil {
			page = *now
		}
		return page
	}
	var was [][4096]byte
	for _, d := range n.disks {
		was = append(was, super(d))
	}
	return func() bool {
		for i, d := range n.disks {
			if super(d) != was[i] {
				return true
			}
		}
		return false
	}
}
