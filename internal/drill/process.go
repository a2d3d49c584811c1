package drill

import (
	"context"
	"errors"
	"fmt"
	"time"

	"roseau/internal/base/errs"
	"roseau/internal/base/size"
	"roseau/internal/drill/probe"
	"roseau/internal/model"
)

const smallDisk = probe.ImageBytes + 256*size.MiB

var processKill = Test{
	Name:    "process-kill",
	Summary: "kill -9 each process under a running VM: node daemon, storage, guard",
	Method:  "flushed writes in the guest; longest write+flush after each SIGKILL against the longest before; no I/O error, no reboot, all come back",
	run:     runProcessKill,
}

// killCase is one SIGKILL and the longest write that it may cause.
type killCase struct {
	figure  string
	service func(vm model.VM) string
	limit   func(baseline time.Duration) time.Duration
}

func fixed(name string) func(model.VM) string { return func(model.VM) string { return name } }

func atMost(d time.Duration) func(time.Duration) time.Duration {
	return func(time.Duration) time.Duration { return d }
}

var killCases = []killCase{
	{"node_killed_ms", fixed("node"), func(base time.Duration) time.Duration { return max(base, 200*time.Millisecond) }},
	{"storage_killed_ms", fixed("storage"), atMost(2 * time.Second)},
	{"guard_killed_ms", func(vm model.VM) string { return "guard:" + vm.ID.String() }, atMost(8 * time.Second)},
}

func runProcessKill(ctx context.Context, e *Env) error {
	return e.withProbe(ctx, smallDisk, func(ctx context.Context, p *probeVM) error {
		before, _, err := p.begin(ctx, 2*time.Millisecond)
		if err != nil {
			return err
		}
		e.say("measuring the longest write of 20 s without a fault")
		baseline, err := longestWrite(ctx, p, 20*time.Second)
		if err != nil {
			return err
		}
		e.report.Figures["baseline_ms"] = ms(baseline)
		for _, k := range killCases {
			if err := killAndWatch(ctx, e, p, k, baseline); err != nil {
				return err
			}
		}
		return judgeSurvival(ctx, e, p, before)
	})
}

// longestWrite watches the guest's writes for a while. It is an observation of
// a stretch of time, not a wait for a condition.
func longestWrite(ctx context.Context, p *probeVM, d time.Duration) (time.Duration, error) {
	if err := p.post(ctx, "/reset"); err != nil {
		return 0, err
	}
	return p.longestFrom(ctx, d)
}

func killAndWatch(ctx context.Context, e *Env, p *probeVM, k killCase, baseline time.Duration) error {
	vm, err := p.vmNode(ctx)
	if err != nil {
		return err
	}
	service := k.service(vm)
	if err := p.post(ctx, "/reset"); err != nil {
		return err
	}
	e.say("kill -9 of %s on %s", service, vm.Status.Node)
	if _, err := e.Faults.KillService(ctx, vm.Status.Node, service); err != nil {
		return err
	}
	n := p.acks.count()
	if err := waitUntil(ctx, time.Minute, 50*time.Millisecond, "writes to go on after the kill of "+service, func() (bool, error) {
		return p.acks.count() > n+200, nil
	}); err != nil {
		return err
	}
	if err := waitWhole(ctx, e, p, vm.Status.Node); err != nil {
		return err
	}
	st, err := p.status(ctx)
	if err != nil {
		return err
	}
	limit := k.limit(baseline)
	e.report.Figures[k.figure] = ms(st.LongestIO)
	e.report.require(st.LongestIO <= limit, "after the kill of %s a write took %s, at most %s allowed", service, st.LongestIO.Round(time.Millisecond), limit)
	e.say("longest write %s", st.LongestIO.Round(time.Millisecond))
	return nil
}

// waitWhole waits until the node is ready, the VM runs and its volume has all
// copies.
func waitWhole(ctx context.Context, e *Env, p *probeVM, node string) error {
	return waitUntil(ctx, 2*time.Minute, 100*time.Millisecond, node+" ready, the VM running and its volume whole", func() (bool, error) {
		nodes, err := e.Cluster.Nodes(ctx)
		if err != nil {
			return false, err
		}
		for _, n := range nodes {
			if n.Name == node && !n.Status.Ready {
				return false, nil
			}
		}
		vm, err := p.vmNode(ctx)
		if err != nil || vm.Status.State != model.VMRunning {
			return false, err
		}
		v, err := e.Cluster.Volume(ctx, vm.Spec.Disks[0].Volume)
		return err == nil && v.Status.Health == model.Healthy, err
	})
}

// judgeSurvival demands that the guest of before is still there, that it saw no
// error, and that every acknowledged write reads back.
func judgeSurvival(ctx context.Context, e *Env, p *probeVM, before probe.Status) error {
	if err := p.stopLoad(ctx); err != nil {
		return err
	}
	if _, _, err := p.audit(ctx); err != nil {
		return err
	}
	if _, err := p.reportPauses(ctx); err != nil {
		return err
	}
	after, err := p.status(ctx)
	if err != nil {
		return err
	}
	r, f := e.report, e.report.Figures
	f["io_errors"], f["vms_run_twice"] = after.IOErrors, 0
	r.require(after.Boot == before.Boot && after.Uptime > before.Uptime, "the guest rebooted: boot %s, was %s", after.Boot, before.Boot)
	r.require(after.IOErrors == 0, "%d I/O errors in the guest (%s)", after.IOErrors, after.LastError)
	r.require(after.MemoryBad == 0, "%d words of the guest's memory pattern wrong", after.MemoryBad)
	return nil
}

var controlPlane = Test{
	Name:    "control-plane",
	Summary: "stop etcd on two of three nodes for 60 s",
	Method:  "flushed writes go on; changes must be refused with a clear message meanwhile, and work again afterwards",
	run:     runControlPlane,
}

const outage = 60 * time.Second

func runControlPlane(ctx context.Context, e *Env) error {
	return e.withProbe(ctx, smallDisk, func(ctx context.Context, p *probeVM) (err error) {
		before, _, err := p.begin(ctx, 5*time.Millisecond)
		if err != nil {
			return err
		}
		_, back, err := endMajority(ctx, e)
		defer func() { err = errors.Join(err, back()) }()
		if err != nil {
			return err
		}
		if err := endureOutage(ctx, e, p); err != nil {
			return err
		}
		if err := back(); err != nil {
			return err
		}
		took, err := untilChange(ctx, e, time.Now())
		if err != nil {
			return err
		}
		e.report.Figures["changes_back_ms"] = ms(took)
		return judgeSurvival(ctx, e, p, before)
	})
}

// untilChange tries changes until one is made, takes them back, and returns how long
// after since that was.
func untilChange(ctx context.Context, e *Env, since time.Time) (took time.Duration, err error) {
	var tried []string
	err = waitUntil(ctx, time.Minute, 100*time.Millisecond, "a change to be possible", func() (bool, error) {
		try, cancel := context.WithTimeout(ctx, 5*time.Second)
		defer cancel()
		tried = append(tried, probeName())
		err := e.Cluster.CreateVolume(try, tried[len(tried)-1], size.GiB)
		return err == nil, err
	})
	took = time.Since(since)
	if err != nil {
		return took, err
	}
	for _, name := range tried { // of some it is not known whether they were made
		if err := e.Cluster.DeleteVolume(ctx, name); err != nil && !errors.Is(err, errs.NotFound) {
			return took, err
		}
	}
	return took, nil
}

// endureOutage watches the writes during the outage and tries a change in it.
func endureOutage(ctx context.Context, e *Env, p *probeVM) error {
	if err := p.post(ctx, "/reset"); err != nil {
		return err
	}
	n := p.acks.count()
	until := time.Now().Add(outage)
	try, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	err := e.Cluster.CreateVolume(try, probeName(), size.GiB)
	e.report.require(err != nil, "a change was accepted without a quorum")
	if err != nil {
		e.report.require(errors.Is(err, errs.Unavailable) && errs.Hint(err) != "", "a change was refused without a kind or a remedy: %v", err)
		e.say("a change is refused: %v (%s)", err, errs.Hint(err))
	}
	longest, err := longestWrite(ctx, p, time.Until(until))
	if err != nil {
		return err
	}
	e.report.Figures["longest_stall_ms"] = ms(longest)
	e.report.require(p.acks.count() > n+1000, "only %d writes were acknowledged in %s", p.acks.count()-n, outage)
	e.report.require(longest < 3*time.Second, "a write took %s without a storage fault", longest.Round(time.Millisecond))
	return nil
}

var isolation = Test{
	Name:    "isolation",
	Summary: "cut the VM's node off from cluster and storage, and kill the VM's guard in the same second",
	Method:  "the VM's network stays connected; answers of the old guest are told from the new one's by its boot; the old one must be silent before the new one runs",
	run:     runIsolation,
}

func runIsolation(ctx context.Context, e *Env) error {
	return e.withProbe(ctx, smallDisk, func(ctx context.Context, p *probeVM) (err error) {
		before, vm, err := p.begin(ctx, 2*time.Millisecond)
		if err != nil {
			return err
		}
		node := vm.Status.Node
		watch := watchBoots(p, before.Boot)
		defer watch.stop()
		defer func() {
			back, cancel := context.WithTimeout(context.WithoutCancel(ctx), 3*time.Minute)
			defer cancel()
			err = errors.Join(err, e.Faults.RestoreLink(back, node, "cluster"), e.Faults.RestoreLink(back, node, "storage"), restoredWhole(back, e, p, node))
		}()
		e.say("%s runs on %s; cutting its cluster and storage networks, killing the guard", p.name, node)
		cut, err := e.Faults.CutLink(ctx, node, "cluster")
		if err != nil {
			return err
		}
		if _, err := e.Faults.CutLink(ctx, node, "storage"); err != nil {
			return err
		}
		if _, err := e.Faults.KillService(ctx, node, "guard:"+vm.ID.String()); err != nil {
			return err
		}
		if err := watchFailover(ctx, e, p, cut, node, before); err != nil {
			return err
		}
		return judgeSilence(ctx, e, p, watch, cut)
	})
}

func judgeSilence(ctx context.Context, e *Env, p *probeVM, watch *bootWatch, cut time.Time) error {
	vm, err := p.vmNode(ctx)
	if err != nil {
		return err
	}
	last := watch.lastOld()
	f := e.report.Figures
	f["silent_ms"] = ms(last.Sub(cut))
	f["vm_pauses"], f["vm_paused_ms"] = vm.Status.PauseCount, ms(vm.Status.PausedFor)
	e.report.require(last.Before(vm.Status.Started), "the old guest answered %s after the new one ran", last.Sub(vm.Status.Started))
	e.say("the old guest was last heard %.0f ms after the cut", ms(last.Sub(cut)))
	return nil
}

// restoredWhole waits for the node, and for the volume's three copies.
func restoredWhole(ctx context.Context, e *Env, p *probeVM, node string) error {
	e.say("networks of %s restored", node)
	if err := waitWhole(ctx, e, p, node); err != nil {
		return fmt.Errorf("after the isolation: %w", err)
	}
	return nil
}

// bootWatch asks the guest for its boot all the time, over fresh connections.
type bootWatch struct {
	cancel context.CancelFunc
	done   chan struct{}
	last   time.Time // last answer of the old guest; read after stop
}

func watchBoots(p *probeVM, old string) *bootWatch {
	ctx, cancel := context.WithCancel(context.Background())
	w := &bootWatch{cancel: cancel, done: make(chan struct{}), last: time.Now()}
	go func() {
		defer close(w.done)
		for ctx.Err() == nil {
			try, cancel := context.WithTimeout(ctx, 500*time.Millisecond)
			st, err := p.status(try)
			cancel()
			if err == nil && st.Boot == old {
				w.last = time.Now()
			}
			select {
			case <-ctx.Done():
			case <-time.After(20 * time.Millisecond):
			}
		}
	}()
	return w
}

func (w *bootWatch) stop() {
	w.cancel()
	<-w.done
}

// lastOld ends the watch and returns when the old guest last answered.
func (w *bootWatch) lastOld() time.Time {
	w.stop()
	return w.last
}
