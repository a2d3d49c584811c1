package sim

import (
	"time"

	"roseau/internal/base/ids"
	"roseau/internal/block/writer"
	"roseau/internal/core/repl"
)

// maintain nX: a maintenance writer opens the volume there, as it does when no VM
// runs and a copy is missing [S14].
func (p *player) maintain(a []string) error {
	n, err := p.node(a[0])
	if err != nil || p.w.opt.Mutations.NoMaintenance {
		return err
	}
	w, t := p.w, p.t
	m := &t.manager
	g := &guard{w: w, t: t, node: n, id: t.drawID(), run: t.drawID(), lastBoot: n.boot, idle: true}
	g.core = writer.New(writer.Config{
		Node: n.id, Run: g.run, Purpose: repl.PurposeMaintenance, Nonce: t.drawID(), Volumes: []ids.ID{t.volume},
		SegmentBytes: segmentBytes, Mutations: w.opt.Mutations.Writer,
	})
	w.guards, n.guards = append(w.guards, g), append(n.guards, g)
	m.challenger = g
	m.follow(g, func() { m.becomeActive(g) })
	g.step(w.liveness())
	g.step(writer.Command{Kind: writer.Prepare})
	return p.await("the maintenance writer", time.Minute, func() bool { return m.active == g })
}

// livingCopies is copies on living disks: who put a dead disk out if no writer runs?
func (t *tenant) livingCopies() int {
	v := t.record()
	fewest := storageNodes
	for s := range segmentCount {
		n := 0
		for _, d := range v.ISR(s) {
			if !t.w.nodeOfDisk(d).diskByID(d).dead {
				n++
			}
		}
		fewest = min(fewest, n)
	}
	return fewest
}

// yield: a VM is to start, and the maintenance writer is told to release.
func (p *player) yield(_ []string) error {
	g := p.t.manager.active
	if p.w.opt.Mutations.NoYield || !g.idle {
		return nil
	}
	g.step(writer.Command{Kind: writer.Release})
	p.w.run(p.w.now.Add(5*time.Second), func() bool { return g.core.State() == writer.ReleasedState })
	g.step(writer.Command{Kind: writer.Stop})
	g.done = true
	g.dropLinks()
	return nil
}

// bmc nX: its BMC says that the node is off, and lies [S24]. Everybody believes
// that it is dead; leases are waited out all the same.
func (p *player) bmc(a []string) error {
	n, err := p.node(a[0])
	if err != nil {
		return err
	}
	n.setSeen(false)
	return nil
}
