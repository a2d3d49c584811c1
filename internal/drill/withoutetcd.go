package drill

import (
	"context"
	"errors"
	"fmt"
	"time"

	"roseau/internal/base/errs"
	"roseau/internal/model"
)

var withoutEtcd = Test{
	Name:    "without-etcd",
	Summary: "while etcd has no majority, reset every storage connection, then kill the VM's guard",
	Method:  "flushed writes must go on after each: sessions are resumed, the next guard takes the same epoch up; no I/O error, no reboot, every flushed write read back",
	rough:   "resets connections",
	run:     runWithoutEtcd,
}

// Limits of a write: as after the kill of a storage process and of the guard.
const (
	resetStall = 2 * time.Second
	guardStall = 8 * time.Second
)

func runWithoutEtcd(ctx context.Context, e *Env) error {
	return e.withProbe(ctx, smallDisk, func(ctx context.Context, p *probeVM) (err error) {
		before, vm, err := p.begin(ctx, 2*time.Millisecond)
		if err != nil {
			return err
		}
		if err := waitWhole(ctx, e, p, vm.Status.Node); err != nil {
			return err
		}
		epoch, err := e.Cluster.Volume(ctx, vm.Spec.Disks[0].Volume)
		if err != nil {
			return err
		}
		nodes, back, err := endMajority(ctx, e)
		defer func() {
			err = errors.Join(err, back(), allReady(context.WithoutCancel(ctx), e))
		}()
		if err != nil {
			return err
		}
		err = stallOf(ctx, e, p, "reset_ms", "every storage connection is reset", resetStall, func() (err error) {
			for _, n := range nodes {
				err = errors.Join(err, e.Rough.ResetConnections(ctx, n.Name, "storage"))
			}
			return err
		})
		if err != nil {
			return err
		}
		err = stallOf(ctx, e, p, "guard_killed_ms", "the guard is killed", guardStall, func() error {
			_, err := e.Faults.KillService(ctx, vm.Status.Node, "guard:"+vm.ID.String())
			return err
		})
		if err != nil {
			return err
		}
		if err := back(); err != nil {
			return err
		}
		if err := waitWhole(ctx, e, p, vm.Status.Node); err != nil {
			return err
		}
		now, err := e.Cluster.Volume(ctx, vm.Spec.Disks[0].Volume)
		if err != nil {
			return err
		}
		e.report.require(now.Status.Epoch == epoch.Status.Epoch, "the next guard took epoch %d, where it had %d without etcd", now.Status.Epoch, epoch.Status.Epoch)
		return judgeSurvival(ctx, e, p, before)
	})
}

// endMajority stops etcd on two of three nodes and, where there is one, the witness.
// back starts them again, once.
func endMajority(ctx context.Context, e *Env) (nodes []model.Node, back func() error, err error) {
	var undo []func(context.Context) error
	back = func() (err error) {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Minute)
		defer cancel()
		for _, u := range undo {
			err = errors.Join(err, u(ctx))
		}
		undo = nil
		return err
	}
	if nodes, err = e.Cluster.Nodes(ctx); err != nil {
		return nil, back, err
	}
	if len(nodes) < 3 {
		return nil, back, errs.New(errs.Unavailable, "the test needs three nodes, the cluster has %d", len(nodes))
	}
	free, _, err := e.Cluster.Outlook(ctx)
	if err != nil {
		return nil, back, err
	}
	if free >= 2 {
		e.say("stopping the witness")
		if err := e.Faults.StopService(ctx, witness, witness); err != nil {
			return nil, back, err
		}
		undo = append(undo, func(ctx context.Context) error { return e.Faults.StartService(ctx, witness, witness) })
	}
	for _, n := range nodes[1:3] {
		e.say("stopping etcd on %s", n.Name)
		if err := e.Faults.StopService(ctx, n.Name, "etcd"); err != nil {
			return nil, back, err
		}
		undo = append(undo, func(ctx context.Context) error { return e.Faults.StartService(ctx, n.Name, "etcd") })
	}
	return nodes, back, nil
}

// witness is the name of the witness's machine, and of its service.
const witness = "witness"

// stallOf does something and demands that writes go on, none having taken longer
// than limit and what was done together: connections are reset as long as one of
// those that stood before is left.
func stallOf(ctx context.Context, e *Env, p *probeVM, figure, what string, limit time.Duration, do func() error) error {
	if err := p.post(ctx, "/reset"); err != nil {
		return err
	}
	began := time.Now()
	if err := do(); err != nil {
		return err
	}
	lasted := time.Since(began)
	if err := p.waitAcks(ctx, 200); err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	st, err := p.status(ctx)
	if err != nil {
		return err
	}
	e.report.Figures[figure] = ms(st.LongestIO)
	e.say("%s, which takes %s: longest write %s", what, lasted.Round(time.Millisecond), st.LongestIO.Round(time.Millisecond))
	e.report.require(st.LongestIO <= limit+lasted, "%s: a write took %s, at most %s and the %s of that allowed",
		what, st.LongestIO.Round(time.Millisecond), limit, lasted.Round(time.Millisecond))
	return nil
}
