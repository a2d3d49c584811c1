package sim

import (
	"errors"

	"roseau/internal/base/ids"
	"roseau/internal/core/repl"
)

// force: the VM is stopped, and an operator gives up the in-sync copies on nodes
// without power: older ones become the truth. From then on a block may hold
// whatever it ever held, until it is read.
func (p *player) force(_ []string) error {
	w, t := p.w, p.t
	t.stopByForce()
	p.endChallenge()
	r := w.etcd.records(t.vm, []ids.ID{t.volume}, w.diskIdx)
	losses, err := repl.Losses(r.Volumes[0], func(d ids.ID) bool { return w.nodeOfDisk(d).powered }, nil)
	if err != nil {
		return err
	}
	txn, _, err := repl.Force(r, losses)
	if err != nil {
		return err
	}
	if out, _ := w.apply(txn); out != repl.OutcomeCommitted {
		return errors.New("the store refused to force a volume that nobody may write")
	}
	w.tracef("operator: %d segments go on without their in-sync copies", len(losses))
	w.note("forced")
	t.oracle.accept(true)
	return nil
}

// foreign nX: a copy there still belongs to the generation that was given up.
func (p *player) foreign(n *node) func() bool {
	return func() bool {
		own := p.t.record().Own
		for _, d := range n.disks {
			eng := n.engines[d.id]
			if eng == nil {
				return false
			}
			if info, ok := eng.Volume(p.t.volume); ok && info.Promise.Generation == own.Generation {
				return false
			}
		}
		return true
	}
}
