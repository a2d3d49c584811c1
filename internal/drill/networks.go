package drill

import (
	"context"
	"errors"
	"fmt"
	"time"

	"roseau/internal/base/errs"
	"roseau/internal/drill/probe"
	"roseau/internal/model"
)

var networkCut = Test{
	Name:    "network-cut",
	Summary: "cut the storage network of all nodes, then the cluster network, and the power of the VM's node meanwhile",
	Method:  "flushed writes go on and no VM is restarted; time until a change is possible after each cut; then, the cluster network still cut, a power cut: time to the restarted VM, every flushed write read back",
	run:     runNetworkCut,
}

// Limits of network-cut.
const (
	cutHeld        = 8 * time.Second // each cut is watched for so long at least
	changesLimit   = 10 * time.Second
	cutStallLimit  = 10 * time.Second
	cutRestartedIn = 10 * time.Second
)

func runNetworkCut(ctx context.Context, e *Env) error {
	nodes, err := e.Cluster.Nodes(ctx)
	if err != nil {
		return err
	}
	for _, n := range nodes {
		if len(n.Spec.Addresses[model.RoleStorage]) == 0 || n.Spec.Addresses[model.RoleStorage][0] == n.Spec.Addresses[model.RoleCluster][0] {
			return errs.New(errs.Conflict, "run network-cut: node %s has one network for everything", n.Name).
				WithHint("join nodes with --cluster-address and --storage-address of two networks")
		}
	}
	return e.withProbe(ctx, smallDisk, func(ctx context.Context, p *probeVM) (err error) {
		before, vm, err := p.begin(ctx, 5*time.Millisecond)
		if err != nil {
			return err
		}
		home := vm.Status.Node
		link := func(ctx context.Context, network string, up bool) (at time.Time, err error) {
			for _, n := range nodes {
				if up {
					err = errors.Join(err, e.Faults.RestoreLink(ctx, n.Name, network))
					continue
				}
				if at, err = e.Faults.CutLink(ctx, n.Name, network); err != nil {
					return at, err
				}
			}
			return at, err
		}
		defer func() {
			back, cancel := context.WithTimeout(context.WithoutCancel(ctx), 3*time.Minute)
			defer cancel()
			for _, network := range []string{"storage", "cluster"} {
				_, lerr := link(back, network, true)
				err = errors.Join(err, lerr)
			}
			err = errors.Join(err, restoredWhole(back, e, p, home))
		}()
		for _, network := range []string{"storage", "cluster"} {
			e.say("%s runs on %s; cutting the %s network of all nodes", p.name, home, network)
			if err := p.post(ctx, "/reset"); err != nil {
				return err
			}
			cut, err := link(ctx, network, false)
			if err != nil {
				return err
			}
			if err := endureCut(ctx, e, p, network, cut, before); err != nil {
				return fmt.Errorf("with the %s network cut: %w", network, err)
			}
			if network == "cluster" {
				break // it stays cut
			}
			if _, err := link(ctx, network, true); err != nil {
				return err
			}
			if err := waitWhole(ctx, e, p, home); err != nil {
				return err
			}
		}
		now, err := p.vmNode(ctx)
		if err != nil {
			return err
		}
		e.report.require(now.Status.Run == vm.Status.Run && now.Status.Node == home, "the VM was restarted by cut networks: run %s on %s, was %s on %s",
			now.Status.Run, now.Status.Node, vm.Status.Run, home)
		return failWithoutNetwork(ctx, e, p, now.Status.Node, before)
	})
}

// endureCut tries changes until one is made, watches the writes for the rest of
// the time, and demands that the guest is the same.
func endureCut(ctx context.Context, e *Env, p *probeVM, network string, cut time.Time, before probe.Status) error {
	r, f := e.report, e.report.Figures
	took, err := untilChange(ctx, e, cut)
	if err != nil {
		return err
	}
	f[network+"_changes_ms"] = ms(took)
	r.require(took <= changesLimit, "with the %s network cut a change was possible after %s, at most %s allowed", network, took.Round(time.Millisecond), changesLimit)
	n := p.acks.count()
	if err := p.waitAcks(ctx, 200); err != nil {
		return err
	}
	longest, err := p.longestFrom(ctx, time.Until(cut.Add(cutHeld)))
	if err != nil {
		return err
	}
	f[network+"_longest_stall_ms"] = ms(longest)
	r.require(longest <= cutStallLimit, "with the %s network cut a write took %s, at most %s allowed", network, longest.Round(time.Millisecond), cutStallLimit)
	st, err := p.status(ctx)
	if err != nil {
		return err
	}
	r.require(st.Boot == before.Boot && st.Uptime > before.Uptime, "the guest rebooted while the %s network was cut", network)
	r.require(st.IOErrors == 0, "%d I/O errors in the guest (%s) while the %s network was cut", st.IOErrors, st.LastError, network)
	e.say("a change after %s, %d writes acknowledged since, longest write %s", took.Round(time.Millisecond), p.acks.count()-n, longest.Round(time.Millisecond))
	return nil
}

// longestFrom returns the longest write since the last reset, after watching for d
// more: an observation of a stretch of time, not a wait for a condition.
func (p *probeVM) longestFrom(ctx context.Context, d time.Duration) (time.Duration, error) {
	select {
	case <-ctx.Done():
		return 0, context.Cause(ctx)
	case <-time.After(d):
	}
	st, err := p.status(ctx)
	return st.LongestIO, err
}

// failWithoutNetwork cuts the power of the VM's node while a network is cut.
func failWithoutNetwork(ctx context.Context, e *Env, p *probeVM, node string, before probe.Status) (err error) {
	e.say("cutting the power of %s, the cluster network still cut", node)
	cut, err := e.Faults.CutNode(ctx, node)
	if err != nil {
		return err
	}
	defer func() {
		back, cancel := context.WithTimeout(context.WithoutCancel(ctx), 3*time.Minute)
		defer cancel()
		err = errors.Join(err, restoreNode(back, e, p, node)) // by the storage network alone
	}()
	return watchFailoverWithin(ctx, e, p, cut, node, before, cutRestartedIn)
}
