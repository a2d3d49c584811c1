package drill

import (
	"context"
	"errors"
	"fmt"
	"time"

	"roseau/internal/base/errs"
	"roseau/internal/drill/probe"
)

var packetLoss = Test{
	Name:    "packet-loss",
	Summary: "let a node with a copy, then the VM's node lose 5 % of its frames, 30 s each",
	Method:  "lost at random in both directions of cluster and storage; flushed writes must go on, no VM restarted or moved, no copy put out twice; every flushed write read back",
	rough:   "loses frames",
	run:     runPacketLoss,
}

const (
	lossHeld = 30 * time.Second
	// lossStall: a segment that is lost five times in a row is sent again after 6.2 s,
	// and a copy that is silent for 4 s is put out.
	lossStall = 8 * time.Second
)

func runPacketLoss(ctx context.Context, e *Env) error {
	nodes, err := e.Cluster.Nodes(ctx)
	if err != nil {
		return err
	}
	return e.withProbe(ctx, smallDisk, func(ctx context.Context, p *probeVM) error {
		before, vm, err := p.begin(ctx, 2*time.Millisecond)
		if err != nil {
			return err
		}
		home := vm.Status.Node
		other := ""
		for _, n := range nodes {
			if n.Name != home {
				other = n.Name
			}
		}
		if other == "" {
			return errs.New(errs.Unavailable, "run packet-loss: the test needs a second node")
		}
		for _, c := range []struct{ figure, node string }{{"other", other}, {"own", home}} {
			if err := waitWhole(ctx, e, p, home); err != nil {
				return err
			}
			if err := endureLoss(ctx, e, p, c.figure, c.node, before); err != nil {
				return fmt.Errorf("while %s loses frames: %w", c.node, err)
			}
		}
		now, err := p.vmNode(ctx)
		if err != nil {
			return err
		}
		e.report.require(now.Status.Run == vm.Status.Run && now.Status.Node == home, "the VM was restarted or moved by lost frames: run %s on %s, was %s on %s",
			now.Status.Run, now.Status.Node, vm.Status.Run, home)
		if err := waitWhole(ctx, e, p, home); err != nil {
			return err
		}
		return judgeSurvival(ctx, e, p, before)
	})
}

// endureLoss lets a node lose frames for a while, and judges how often copies were put
// out meanwhile and how long writes took.
func endureLoss(ctx context.Context, e *Env, p *probeVM, figure, node string, before probe.Status) (err error) {
	vm, err := p.vmNode(ctx)
	if err != nil {
		return err
	}
	e.say("%s loses %d %% of its frames for %s", node, lossPercent, lossHeld)
	if err := p.post(ctx, "/reset"); err != nil {
		return err
	}
	began, acked := time.Now(), p.acks.count()
	p.acks.watch()
	copies := watchCopies(ctx, e, vm.Spec.Disks[0].Volume)
	defer copies.stop()
	heal, err := loseFrames(ctx, e.Rough, node)
	healed := false
	end := func() error {
		if healed {
			return nil
		}
		back, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
		defer cancel()
		healed = true
		return heal(back)
	}
	defer func() { err = errors.Join(err, end()) }()
	if err != nil {
		return err
	}
	longest, err := p.longestFrom(ctx, lossHeld)
	if err != nil {
		return err
	}
	gap := p.acks.watched()
	acked = p.acks.count() - acked
	if err := end(); err != nil {
		return err
	}
	if err := waitWhole(ctx, e, p, vm.Status.Node); err != nil {
		return err
	}
	fewest := copies.stop()
	r, f := e.report, e.report.Figures
	f[figure+"_longest_write_ms"], f[figure+"_longest_gap_ms"], f[figure+"_writes"], f[figure+"_fewest_copies"] = ms(longest), ms(gap), acked, fewest
	most := 0
	for disk, n := range copies.outs {
		most = max(most, n)
		r.require(n <= 1, "the copy on %s was put out %d times while %s lost frames", disk, n, node)
	}
	f[figure+"_times_put_out"] = most
	r.require(acked > 100, "%d writes were acknowledged in %s", acked, lossHeld)
	r.require(max(longest, gap) <= lossStall, "while %s lost frames %s passed without a write, at most %s allowed", node, max(longest, gap).Round(time.Millisecond), lossStall)
	st, err := p.status(ctx)
	if err != nil {
		return err
	}
	r.require(st.Boot == before.Boot, "the guest rebooted while %s lost frames", node)
	e.say("%d writes, longest %s, longest time without one %s, never fewer than %d copies, a copy put out %d times",
		acked, longest.Round(time.Millisecond), gap.Round(time.Millisecond), fewest, most)
	return quiet(ctx, e, p, began)
}
