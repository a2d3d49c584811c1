package drill

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"roseau/internal/base/errs"
	"roseau/internal/drill/probe"
)

var doubleFailure = Test{
	Name:    "double-failure",
	Summary: "cut two of three nodes, each with a VM: at once, then one after the other (needs a witness)",
	Method:  "power of both nodes cut; time until the VMs of both run on the last node, their pages, every flushed write read back; then again, the second node as soon as the first one's VM runs",
	run:     runDoubleFailure,
}

// doubleLimit bounds the restart of the worst VM.
const doubleLimit = 10 * time.Second

// twoProbes are two VMs and where they run.
type twoProbes struct {
	e *Env
	p [2]*probeVM
}

func runDoubleFailure(ctx context.Context, e *Env) error {
	free, text, err := e.Cluster.Outlook(ctx)
	if err != nil {
		return err
	}
	if free < 2 {
		return errs.New(errs.Conflict, "run double-failure: two nodes may not fail on this cluster: %s", text).
			WithHint("on a lab: `roseau lab up --witness`; else `roseau witness add`, and wait until `roseau cluster status` says that any 2 can fail")
	}
	return e.withProbe(ctx, smallDisk, func(ctx context.Context, p1 *probeVM) error {
		return e.withProbe(ctx, smallDisk, func(ctx context.Context, p2 *probeVM) error {
			d := &twoProbes{e: e, p: [2]*probeVM{p1, p2}}
			for _, p := range d.p {
				if err := p.startLoad(ctx, 5*time.Millisecond); err != nil {
					return err
				}
			}
			if err := d.atOnce(ctx); err != nil {
				return fmt.Errorf("both at once: %w", err)
			}
			if err := d.inTurn(ctx); err != nil {
				return fmt.Errorf("one after the other: %w", err)
			}
			return d.pauses(ctx)
		})
	})
}

// spread puts the two VMs on two nodes and returns these.
func (d *twoProbes) spread(ctx context.Context) (nodes [2]string, err error) {
	for i, p := range d.p {
		vm, err := p.vmNode(ctx)
		if err != nil {
			return nodes, err
		}
		nodes[i] = vm.Status.Node
	}
	if nodes[0] != nodes[1] {
		return nodes, nil
	}
	all, err := d.e.Cluster.Nodes(ctx)
	if err != nil {
		return nodes, err
	}
	for _, n := range all {
		if n.Name != nodes[0] && n.Status.Ready {
			d.e.say("moving %s to %s", d.p[1].name, n.Name)
			nodes[1] = n.Name
			return nodes, d.e.Cluster.Migrate(ctx, d.p[1].name, n.Name)
		}
	}
	return nodes, errs.New(errs.Conflict, "no second node is ready")
}

// atOnce cuts both nodes in the same moment.
func (d *twoProbes) atOnce(ctx context.Context) (err error) {
	nodes, err := d.spread(ctx)
	if err != nil {
		return err
	}
	before, err := d.ready(ctx)
	if err != nil {
		return err
	}
	d.e.say("%s runs on %s, %s on %s; cutting the power of both", d.p[0].name, nodes[0], d.p[1].name, nodes[1])
	defer d.restore(ctx, nodes, &err)
	var cuts [2]time.Time
	var cutErrs [2]error
	var wg sync.WaitGroup
	for i, n := range nodes {
		wg.Go(func() { cuts[i], cutErrs[i] = d.e.Faults.CutNode(ctx, n) })
	}
	wg.Wait()
	if err := errors.Join(cutErrs[:]...); err != nil {
		return err
	}
	cut := cuts[0]
	if cuts[1].Before(cut) {
		cut = cuts[1]
	}
	return d.watch(ctx, "", cut, nodes, []int{0, 1}, before)
}

// inTurn cuts the second node as soon as the VM of the first one runs again.
func (d *twoProbes) inTurn(ctx context.Context) (err error) {
	nodes, err := d.spread(ctx)
	if err != nil {
		return err
	}
	for _, p := range d.p {
		if err := p.startLoad(ctx, 5*time.Millisecond); err != nil {
			return err
		}
	}
	before, err := d.ready(ctx)
	if err != nil {
		return err
	}
	d.e.say("%s runs on %s, %s on %s; cutting %s first", d.p[0].name, nodes[0], d.p[1].name, nodes[1], nodes[0])
	defer d.restore(ctx, nodes, &err)
	first, err := d.e.Faults.CutNode(ctx, nodes[0])
	if err != nil {
		return err
	}
	vm, took, err := d.p[0].runsElsewhere(ctx, first, nodes[:1], before[0].run)
	if err != nil {
		return err
	}
	d.e.report.Figures["first_restarted_ms"] = ms(took)
	d.e.say("%s runs on %s after %s; cutting %s", d.p[0].name, vm.Status.Node, took.Round(time.Millisecond), nodes[1])
	second, err := d.e.Faults.CutNode(ctx, nodes[1])
	if err != nil {
		return err
	}
	on := []int{1}
	if vm.Status.Node == nodes[1] {
		on = []int{0, 1}
		before[0].run = vm.Status.Run.String()
	}
	return d.watch(ctx, "in_turn_", second, nodes, on, before)
}

// guestBefore is who ran before a cut.
type guestBefore struct {
	boot string
	run  string
}

// ready waits for writes of both guests and notes who they are.
func (d *twoProbes) ready(ctx context.Context) (out [2]guestBefore, err error) {
	for i, p := range d.p {
		if err := p.waitAcks(ctx, 100); err != nil {
			return out, err
		}
		st, err := p.status(ctx)
		if err != nil {
			return out, err
		}
		vm, err := p.vmNode(ctx)
		if err != nil {
			return out, err
		}
		out[i] = guestBefore{st.Boot, vm.Status.Run.String()}
	}
	return out, nil
}

// outcome is what one VM's restart measured.
type outcome struct {
	restarted, back time.Duration
	acked, lost     int
	twice           int
	err             error
}

// watch measures the restarts of the VMs numbered on, all at the same time, and
// reads every acknowledged write of both back.
func (d *twoProbes) watch(ctx context.Context, prefix string, cut time.Time, off [2]string, on []int, before [2]guestBefore) error {
	out := make([]outcome, len(on))
	var wg sync.WaitGroup
	for k, i := range on {
		wg.Go(func() { out[k] = d.one(ctx, d.p[i], cut, off, before[i]) })
	}
	wg.Wait()
	var worst, back time.Duration
	r, f := d.e.report, d.e.report.Figures
	acked, lost, twice := 0, 0, 0
	for k, i := range on {
		o := out[k]
		if o.err != nil {
			return fmt.Errorf("%s: %w", d.p[i].name, o.err)
		}
		worst, back = max(worst, o.restarted), max(back, o.back)
		acked, lost, twice = acked+o.acked, lost+o.lost, twice+o.twice
		d.e.say("%s runs after %s, its page answers after %s", d.p[i].name, o.restarted.Round(time.Millisecond), o.back.Round(time.Millisecond))
	}
	f[prefix+"restarted_ms"], f[prefix+"service_back_ms"] = ms(worst), ms(back)
	count := func(name string, n int) {
		sum, _ := f[name].(int)
		f[name] = sum + n
	}
	count("writes_acked", acked)
	count("writes_lost", lost)
	count("vms_run_twice", twice)
	r.require(worst <= doubleLimit, "the last VM ran %s after the cut, at most %s allowed", worst.Round(time.Millisecond), doubleLimit)
	r.require(lost == 0, "%d of %d acknowledged writes lost", lost, acked)
	r.require(acked > 0, "no write was acknowledged before the cut")
	r.require(twice == 0, "a guest of before the cut still answers")
	return nil
}

func (d *twoProbes) one(ctx context.Context, p *probeVM, cut time.Time, off [2]string, before guestBefore) (o outcome) {
	if _, o.restarted, o.err = p.runsElsewhere(ctx, cut, off[:], before.run); o.err != nil {
		return o
	}
	if o.err = p.waitForPage(ctx, 2*time.Minute); o.err != nil {
		return o
	}
	o.back = time.Since(cut)
	var st probe.Status
	if st, o.err = p.status(ctx); o.err != nil {
		return o
	}
	if st.Boot == before.boot {
		o.twice++
	}
	o.acked, o.lost, o.err = p.readBack(ctx)
	return o
}

// restore gives the nodes their power back and waits until everything is as it
// was: the nodes, the three copies, and that any two may fail.
func (d *twoProbes) restore(ctx context.Context, nodes [2]string, err *error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 4*time.Minute)
	defer cancel()
	for _, n := range nodes {
		if e := d.e.Faults.RestoreNode(ctx, n); e != nil && !errors.Is(e, errs.Conflict) {
			*err = errors.Join(*err, fmt.Errorf("restore node %s: %w", n, e))
		}
	}
	for _, n := range nodes {
		for _, p := range d.p {
			*err = errors.Join(*err, waitWhole(ctx, d.e, p, n))
		}
	}
	*err = errors.Join(*err, d.e.waitOutlook(ctx, 2))
}

// pauses adds up what the guests that run now may have noticed.
func (d *twoProbes) pauses(ctx context.Context) error {
	count, long := 0, time.Duration(0)
	for _, p := range d.p {
		vm, err := p.vmNode(ctx)
		if err != nil {
			return err
		}
		count, long = count+vm.Status.PauseCount, long+vm.Status.PausedFor
	}
	d.e.report.Figures["vm_pauses"], d.e.report.Figures["vm_paused_ms"] = count, ms(long)
	return nil
}
