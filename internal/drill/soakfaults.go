package drill

import (
	"context"
	"errors"
	"time"

	"roseau/internal/base/errs"
	"roseau/internal/base/size"
	"roseau/internal/model"
)

// slowBy is the delay of each action of a slowed disk.
const slowBy = 50 * time.Millisecond

// lossPercent of the frames are lost, in either direction.
const lossPercent = 5

// corruptFrom leaves a disk's superblocks, log and metadata alone: a soak wants
// rot in data, again and again, and no dead disks.
const (
	corruptFrom = 400 * size.MiB
	corruptBits = 64
)

type healer func(context.Context) error

// do inflicts a fault and returns how it is healed; nil: by itself.
func (s *Soak) do(ctx context.Context, f PlannedFault) (healer, error) {
	node := s.nodes[f.Node].Name
	var vm model.VM
	if f.aimsAtVM() {
		var err error
		if vm, err = s.probes[f.VM].vmNode(ctx); err != nil {
			return nil, err
		}
		node = vm.Status.Node
	}
	faults := s.Env.Faults
	switch f.Kind.Name {
	case "node-cut":
		_, err := faults.CutNode(ctx, node)
		return func(ctx context.Context) error { return faults.RestoreNode(ctx, node) }, err
	case "node-freeze":
		return func(ctx context.Context) error { return s.Rough.ThawNode(ctx, node) }, s.Rough.FreezeNode(ctx, node)
	case "power-cut-all":
		return s.Rough.RestorePower, s.Rough.CutPower(ctx)
	case "isolate":
		return s.cutLinks(ctx, node, "cluster", "storage")
	case "storage-link-cut":
		return s.cutLinks(ctx, node, "storage")
	case "control-link-cut":
		return s.cutLinks(ctx, node, "cluster")
	case "packet-loss":
		return loseFrames(ctx, s.Rough, node)
	case "etcd-stop":
		return s.stopEtcd(ctx, node)
	case "etcd-quorum-lost":
		return s.stopEtcd(ctx, node, s.nodes[(f.Node+1)%len(s.nodes)].Name)
	case "storage-kill":
		return s.kill(ctx, node, "storage")
	case "node-daemon-kill":
		return s.kill(ctx, node, "node")
	case "guard-kill":
		return s.kill(ctx, node, "guard:"+vm.ID.String())
	case "guard-kill-isolated":
		heal, err := s.cutLinks(ctx, node, "cluster", "storage")
		if err != nil {
			return heal, err
		}
		_, err = s.kill(ctx, node, "guard:"+vm.ID.String())
		return heal, err
	case "migrate":
		return nil, s.Env.Cluster.Migrate(ctx, vm.Name, "")
	}
	return s.doDisk(ctx, f, node, vm)
}

// doDisk inflicts the faults of disks.
func (s *Soak) doDisk(ctx context.Context, f PlannedFault, node string, vm model.VM) (healer, error) {
	switch f.Kind.Name {
	case "disk-slow":
		d, err := s.diskOf(ctx, s.nodes[f.Node])
		if err != nil {
			return nil, err
		}
		heal := func(ctx context.Context) error { return s.Rough.SlowDisk(ctx, node, d.Spec.Path, 0) }
		return heal, s.Rough.SlowDisk(ctx, node, d.Spec.Path, slowBy)
	case "disk-pull":
		d, on, err := chooseDisk(ctx, &s.Env, vm.Spec.Disks[0].Volume)
		if err != nil {
			return nil, err
		}
		_, err = s.Env.Faults.PullDisk(ctx, on, d.Spec.Path)
		return func(ctx context.Context) error { return returnDisk(ctx, &s.Env, d, on) }, err
	case "disk-corrupt":
		d, on, err := chooseDisk(ctx, &s.Env, vm.Spec.Disks[0].Volume)
		if err != nil {
			return nil, err
		}
		n, err := s.Rough.CorruptDisk(ctx, on, d.Spec.Path, corruptFrom, corruptBits)
		s.Env.say("%d bits of %s flipped", n, d.Name)
		return nil, err
	}
	return nil, errs.New(errs.Invalid, "run a soak: no fault is called %q", f.Kind.Name)
}

// diskOf returns the first active disk of a node.
func (s *Soak) diskOf(ctx context.Context, n model.Node) (model.Disk, error) {
	disks, err := s.Env.Cluster.Disks(ctx)
	if err != nil {
		return model.Disk{}, err
	}
	for _, d := range disks {
		if d.Spec.Node == n.ID && d.Status.State == model.DiskActive {
			return d, nil
		}
	}
	return model.Disk{}, errs.New(errs.NotFound, "slow a disk of %s: it has none", n.Name)
}

func (s *Soak) cutLinks(ctx context.Context, node string, networks ...string) (healer, error) {
	heal := func(ctx context.Context) (err error) {
		for _, n := range networks {
			err = errors.Join(err, s.Env.Faults.RestoreLink(ctx, node, n))
		}
		return err
	}
	for _, n := range networks {
		if _, err := s.Env.Faults.CutLink(ctx, node, n); err != nil {
			return heal, err
		}
	}
	return heal, nil
}

// loseFrames lets a node lose frames of the networks between nodes.
func loseFrames(ctx context.Context, r RoughFaults, node string) (healer, error) {
	set := func(ctx context.Context, percent int) error {
		return errors.Join(r.LoseFrames(ctx, node, "cluster", percent), r.LoseFrames(ctx, node, "storage", percent))
	}
	return func(ctx context.Context) error { return set(ctx, 0) }, set(ctx, lossPercent)
}

func (s *Soak) stopEtcd(ctx context.Context, nodes ...string) (healer, error) {
	heal := func(ctx context.Context) (err error) {
		for _, n := range nodes {
			err = errors.Join(err, s.Env.Faults.StartService(ctx, n, "etcd"))
		}
		return err
	}
	for _, n := range nodes {
		if err := s.Env.Faults.StopService(ctx, n, "etcd"); err != nil {
			return heal, err
		}
	}
	return heal, nil
}

func (s *Soak) kill(ctx context.Context, node, service string) (healer, error) {
	_, err := s.Env.Faults.KillService(ctx, node, service)
	return nil, err
}
