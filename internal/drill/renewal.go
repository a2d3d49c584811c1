package drill

import (
	"context"
	"slices"
	"time"

	"roseau/internal/base/errs"
	"roseau/internal/base/size"
	"roseau/internal/drill/probe"
	"roseau/internal/model"
)

var nodeReplacement = Test{
	Name:    "node-replacement",
	Summary: "lose the node that runs a VM for good; a spare node takes its place (needs a fourth node; the lost one is not brought back)",
	Method: "power cut for good; restart measured as in node-failure; then `node replace` under the restarted guest's writes: time until every copy is in sync " +
		"elsewhere and the old node is gone; every flushed write read back twice",
	run: runNodeReplacement,
}

// replaceLimit bounds the rebuild of the little that the drill's guest has
// beside whatever else the old node held.
const replaceLimit = 15 * time.Minute

func runNodeReplacement(ctx context.Context, e *Env) error {
	nodes, err := e.Cluster.Nodes(ctx)
	if err != nil {
		return err
	}
	ready := 0
	for _, n := range nodes {
		if n.Status.Ready {
			ready++
		}
	}
	if ready < 4 {
		return errs.New(errs.Conflict, "run node-replacement: %d nodes are ready, it needs a fourth as the new one", ready).
			WithHint("on a lab: `roseau lab up --nodes 4`; else let another machine join and claim its disks")
	}
	return e.withProbe(ctx, probe.ImageBytes+256*size.MiB, func(ctx context.Context, p *probeVM) error {
		before, vm, err := p.begin(ctx, 2*time.Millisecond)
		if err != nil {
			return err
		}
		old := vm.Status.Node
		if err := p.waitAcks(ctx, 300); err != nil {
			return err
		}
		gone, fresh, err := chooseSpare(ctx, e, vm, old)
		if err != nil {
			return err
		}
		e.report.Figures["node"], e.report.Figures["replaced_by"] = old, fresh
		e.say("%s runs on %s; cutting its power for good, %s is to take its place", p.name, old, fresh)
		cut, err := e.Faults.CutNode(ctx, old)
		if err != nil {
			return err
		}
		if err := watchFailover(ctx, e, p, cut, old, before); err != nil {
			return err
		}
		return watchReplacement(ctx, e, p, old, fresh, gone)
	})
}

// chooseSpare returns the disks of the old node, and the node that is to take its
// place: one without a copy of the guest's data, if there is one.
func chooseSpare(ctx context.Context, e *Env, vm model.VM, old string) (gone []string, fresh string, err error) {
	nodes, err := e.Cluster.Nodes(ctx)
	if err != nil {
		return nil, "", err
	}
	disks, err := e.Cluster.Disks(ctx)
	if err != nil {
		return nil, "", err
	}
	placed, err := e.Cluster.VolumeDisks(ctx, vm.Spec.Disks[0].Volume)
	if err != nil {
		return nil, "", err
	}
	for _, n := range nodes {
		holds := false
		for _, d := range disks {
			if d.Spec.Node != n.ID {
				continue
			}
			if n.Name == old {
				gone = append(gone, d.ID.String())
			}
			holds = holds || slices.Contains(placed, d.ID.String())
		}
		if n.Name != old && n.Status.Ready && (fresh == "" || !holds) {
			fresh = n.Name
		}
	}
	return gone, fresh, nil
}

// watchReplacement has the old node replaced under the guest's writes.
func watchReplacement(ctx context.Context, e *Env, p *probeVM, old, fresh string, gone []string) error {
	r, f := e.report, e.report.Figures
	if err := p.startLoad(ctx, 2*time.Millisecond); err != nil {
		return err
	}
	if err := p.waitAcks(ctx, 50); err != nil {
		return err
	}
	running, err := p.status(ctx)
	if err != nil {
		return err
	}
	begin := time.Now()
	rctx, cancel := context.WithTimeout(ctx, replaceLimit)
	defer cancel()
	if err := e.Cluster.ReplaceNode(rctx, old, fresh); err != nil {
		return err
	}
	took := time.Since(begin)
	f["replaced_ms"] = ms(took)
	e.say("%s took the place of %s in %s", fresh, old, took.Round(time.Millisecond))
	vm, err := p.vmNode(ctx)
	if err != nil {
		return err
	}
	v, err := e.Cluster.Volume(ctx, vm.Spec.Disks[0].Volume)
	if err != nil {
		return err
	}
	placed, err := e.Cluster.VolumeDisks(ctx, vm.Spec.Disks[0].Volume)
	if err != nil {
		return err
	}
	nodes, err := e.Cluster.Nodes(ctx)
	if err != nil {
		return err
	}
	f["copies"] = v.Status.Copies
	r.require(v.Status.Health == model.Healthy, "the volume is %s after the replacement", v.Status.Health)
	r.require(!slices.ContainsFunc(placed, func(d string) bool { return slices.Contains(gone, d) }), "a copy is still placed on %s", old)
	r.require(!slices.ContainsFunc(nodes, func(n model.Node) bool { return n.Name == old }), "%s is still a node of the cluster", old)
	if err := p.stopLoad(ctx); err != nil {
		return err
	}
	earlier, _ := f["writes_acked"].(int)
	acked, _, err := p.audit(ctx) // of the whole run
	if err != nil {
		return err
	}
	after, err := p.status(ctx)
	if err != nil {
		return err
	}
	f["vm_pauses"], f["vm_paused_ms"] = vm.Status.PauseCount, ms(vm.Status.PausedFor)
	r.require(acked > earlier, "no write was acknowledged during the replacement")
	r.require(after.Boot == running.Boot, "the guest was restarted during the replacement")
	return nil
}
