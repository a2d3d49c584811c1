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
	w := p.w
	w.stopByForce()
	p.endChallenge()
	r := w.etcd.records(w.vm, []ids.ID{w.volume}, w.diskIdx)
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
	w.oracle.accept(true)
	return nil
}

// foreign nX: a copy there still belongs to the generation that was given up.
func (p *player) foreign(n *node) func() bool {
	return func() bool {
		r := p.w.etcd.records(p.w.vm, idsOf(p.w.volume), p.w.diskIdx)
		for _, d := range n.disks {
			eng := n.engines[d.id]
			if eng == nil {
				return false
			}
			if info, ok := eng.Volume(p.w.volume); ok && info.Promise.Generation == r.Volumes[0].Own.Generation {
				return false
			}
		}
		return true
	}
}
