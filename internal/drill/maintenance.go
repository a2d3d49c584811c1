package drill

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"roseau/internal/base/errs"
	"roseau/internal/drill/probe"
	"roseau/internal/model"
)

var drainTest = Test{
	Name:    "drain",
	Summary: "drain the node that runs a VM, then let it go back",
	Method:  "pings every 10 ms and flushed writes meanwhile; the VM must leave and return without a reboot, and be refused on the drained node",
	run:     runDrain,
}

var nodeShutdown = Test{
	Name:    "node-shutdown",
	Summary: "shut the node that runs a VM down in order, then give it power again",
	Method:  "`node shutdown`: the VM moves and is not restarted, no alarm is told; with power again the node takes part and the VM goes back; every flushed write read back",
	run:     runNodeShutdown,
}

var rollingRestart = Test{
	Name:    "rolling-restart",
	Summary: "restart every node of the cluster, one at a time",
	Method:  "`cluster restart --rolling`: each node boots anew, the VM never does; its volume's copies are read all the time and must not be fewer than two",
	run:     runRollingRestart,
}

var coldStart = Test{
	Name:    "cold-start",
	Summary: "cut the power of every node at once, and give it back",
	Method:  "unflushed writes of all disks dropped; the VM must start again unattended; times count from the power's return; every flushed write read back",
	rough:   "cuts the power of every node",
	run:     runColdStart,
}

var freeze = Test{
	Name:    "freeze",
	Summary: "freeze the node that runs a VM, and thaw it when the VM runs elsewhere",
	Method:  "every process of the node stopped, its cables up; frames of the VM's address are told apart by the cable they come from: none from the old node once the new guest runs, the thaw included",
	rough:   "stops every process of a node",
	run:     runFreeze,
}

// stay is what must not change while a VM moves: who the guest is, and how often
// it was restarted.
type stay struct {
	before   probe.Status
	restarts int
	home     string
}

func (p *probeVM) stay(ctx context.Context) (s stay, err error) {
	before, vm, err := p.begin(ctx, 5*time.Millisecond)
	if err == nil {
		err = p.waitAcks(ctx, 100)
	}
	return stay{before, vm.Status.Restarts, vm.Status.Node}, err
}

// runsOn waits until the VM runs on a node (want true), or on another one.
func (p *probeVM) runsOn(ctx context.Context, node string, want bool, limit time.Duration) error {
	what := p.name + " to run on " + node
	if !want {
		what = p.name + " to run on a node other than " + node
	}
	return waitUntil(ctx, limit, 100*time.Millisecond, what, func() (bool, error) {
		vm, err := p.vmNode(ctx)
		return err == nil && vm.Status.State == model.VMRunning && (vm.Status.Node == node) == want, err
	})
}

// judgeStay reads back and demands that the guest of before still runs, not
// restarted.
func judgeStay(ctx context.Context, e *Env, p *probeVM, s stay) error {
	vm, err := p.vmNode(ctx)
	if err != nil {
		return err
	}
	e.report.Figures["vm_restarts"] = vm.Status.Restarts - s.restarts
	e.report.require(vm.Status.Restarts == s.restarts, "the VM was restarted %d times", vm.Status.Restarts-s.restarts)
	return judgeSurvival(ctx, e, p, s.before)
}

func runDrain(ctx context.Context, e *Env) error {
	return e.withProbe(ctx, smallDisk, func(ctx context.Context, p *probeVM) (err error) {
		s, err := p.stay(ctx)
		if err != nil {
			return err
		}
		drained := false
		defer func() {
			if drained {
				back, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
				defer cancel()
				err = errors.Join(err, e.Cluster.Undrain(back, s.home))
			}
		}()
		pings, err := startPings(ctx, e.Vantage, p.addr, pingInterval)
		if err != nil {
			return err
		}
		e.say("%s runs on %s; draining it", p.name, s.home)
		began := time.Now()
		drained = true
		err = e.Cluster.Drain(ctx, s.home)
		e.report.Figures["drain_ms"] = ms(time.Since(began))
		if err == nil {
			err = p.runsOn(ctx, s.home, false, time.Second)
		}
		if err == nil {
			refused := e.Cluster.Migrate(ctx, p.name, s.home)
			e.report.require(refused != nil, "a migration to the drained node was not refused")
			if refused != nil {
				e.say("a migration back is refused: %v", refused)
			}
			e.say("undraining %s", s.home)
			began = time.Now()
			err = e.Cluster.Undrain(ctx, s.home)
			drained = err != nil
		}
		if err == nil {
			err = p.runsOn(ctx, s.home, true, time.Minute)
			e.report.Figures["failback_ms"] = ms(time.Since(began))
		}
		end := pings.stop(pingsStart(pings))
		if err != nil {
			return err
		}
		e.sayLost(end)
		f := e.report.Figures
		f["node"], f["pings_sent"], f["pings_lost"], f["longest_gap_ms"] = s.home, end.sent, end.lost, ms(end.longestGap)
		e.report.require(end.lost <= 2*mostLost, "%d pings lost by two moves, at most %d allowed", end.lost, 2*mostLost)
		return judgeStay(ctx, e, p, s)
	})
}

// offLimit bounds the time from a node's leave to its machine's end.
const offLimit = 2 * time.Minute

func runNodeShutdown(ctx context.Context, e *Env) error {
	return e.withProbe(ctx, smallDisk, func(ctx context.Context, p *probeVM) (err error) {
		s, err := p.stay(ctx)
		if err != nil {
			return err
		}
		e.say("%s runs on %s; shutting that down", p.name, s.home)
		began := time.Now()
		p.acks.watch()
		if err := e.Cluster.Leave(ctx, s.home, model.OrderShutdown); err != nil {
			return err
		}
		on := false
		defer func() {
			if !on {
				back, cancel := context.WithTimeout(context.WithoutCancel(ctx), 3*time.Minute)
				defer cancel()
				err = errors.Join(err, restoreNode(back, e, p, s.home))
			}
		}()
		f := e.report.Figures
		f["node"], f["shutdown_ms"] = s.home, ms(time.Since(began))
		if err := p.waitAcks(ctx, 100); err != nil {
			return err
		}
		f["longest_stall_ms"] = ms(p.acks.watched())
		// The cluster calls the node off when it has left; the machine still ends
		// its processes then.
		err = waitUntil(ctx, offLimit, 100*time.Millisecond, s.home+" to be without power", func() (bool, error) {
			power, err := e.Faults.HasPower(ctx, s.home)
			return !power, err
		})
		if err != nil {
			return err
		}
		if err := quiet(ctx, e, p, began); err != nil {
			return err
		}
		e.say("%s is off after %.1f s; giving it power again", s.home, ms(time.Since(began))/1000)
		began = time.Now()
		if err := restoreNode(ctx, e, p, s.home); err != nil {
			return err
		}
		on = true
		if err := p.runsOn(ctx, s.home, true, 2*time.Minute); err != nil {
			return err
		}
		f["failback_ms"] = ms(time.Since(began))
		return judgeStay(ctx, e, p, s)
	})
}

// quiet demands that nothing was told that sounds like a failure.
func quiet(ctx context.Context, e *Env, p *probeVM, since time.Time) error {
	events, err := e.Cluster.Events(ctx, since)
	if err != nil {
		return err
	}
	for _, ev := range events {
		loud := strings.HasPrefix(ev.Subject, "node ") && ev.Level != "info" || ev.Subject == "vm "+p.name && strings.HasPrefix(ev.Text, "recovers")
		e.report.require(!loud, "an alarm was told: %s %s", ev.Subject, ev.Text)
	}
	return nil
}

// rollingLimit bounds the whole: a node of a lab is away for some seconds.
const rollingLimit = 6 * time.Minute

func runRollingRestart(ctx context.Context, e *Env) error {
	nodes, err := e.Cluster.Nodes(ctx)
	if err != nil {
		return err
	}
	if len(nodes) < 3 {
		return errs.New(errs.Unavailable, "run rolling-restart: the test needs three nodes, the cluster has %d", len(nodes))
	}
	return e.withProbe(ctx, smallDisk, func(ctx context.Context, p *probeVM) error {
		s, err := p.stay(ctx)
		if err != nil {
			return err
		}
		vm, err := p.vmNode(ctx)
		if err != nil {
			return err
		}
		// A new volume is whole once; what counts is from here on.
		if err := waitWhole(ctx, e, p, s.home); err != nil {
			return err
		}
		copies := watchCopies(ctx, e, vm.Spec.Disks[0].Volume)
		p.acks.watch()
		e.say("%s runs on %s; restarting %d nodes", p.name, s.home, len(nodes))
		began := time.Now()
		rctx, cancel := context.WithTimeout(ctx, rollingLimit)
		err = e.Cluster.RestartRolling(rctx)
		cancel()
		fewest := copies.stop()
		if err != nil {
			return fmt.Errorf("rolling restart: %w", err)
		}
		f := e.report.Figures
		f["took_ms"], f["fewest_copies"], f["longest_stall_ms"] = ms(time.Since(began)), fewest, ms(p.acks.watched())
		back, err := rebooted(ctx, e, began)
		if err != nil {
			return err
		}
		f["nodes_restarted"] = back
		e.report.require(back == len(nodes), "%d of %d nodes were restarted", back, len(nodes))
		e.report.require(fewest >= 2, "the volume had %d copies in sync", fewest)
		e.say("%d nodes in %.0f s, never fewer than %d copies, longest time without a write %.0f ms", back, ms(time.Since(began))/1000, fewest, f["longest_stall_ms"])
		if err := quiet(ctx, e, p, began); err != nil {
			return err
		}
		return judgeStay(ctx, e, p, s)
	})
}

// rebooted counts the nodes that came back from a reboot that was asked for.
func rebooted(ctx context.Context, e *Env, since time.Time) (int, error) {
	events, err := e.Cluster.Events(ctx, since)
	seen := map[string]bool{}
	for _, ev := range events {
		if strings.HasPrefix(ev.Text, "is back after the reboot") {
			seen[ev.Subject] = true
		}
	}
	return len(seen), err
}

// copyWatch reads how many copies of a volume are in sync, all the time.
type copyWatch struct {
	cancel context.CancelFunc
	done   chan struct{}
	fewest int            // read after done
	outs   map[string]int // how often each disk was put out; read after done
}

func watchCopies(ctx context.Context, e *Env, volume string) *copyWatch {
	ctx, cancel := context.WithCancel(ctx)
	w := &copyWatch{cancel: cancel, done: make(chan struct{}), fewest: 3, outs: map[string]int{}}
	go func() {
		defer close(w.done)
		tick := time.NewTicker(100 * time.Millisecond)
		defer tick.Stop()
		out := map[string]bool{}
		for {
			if v, err := e.Cluster.Volume(ctx, volume); err == nil {
				w.fewest = min(w.fewest, v.Status.Copies)
				was := out
				out = map[string]bool{}
				for _, text := range v.Status.Out {
					disk, _, _ := strings.Cut(text, ":") // its reason may change
					if out[disk] = true; !was[disk] {
						w.outs[disk]++
					}
				}
			}
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
		}
	}()
	return w
}

func (w *copyWatch) stop() int {
	w.cancel()
	<-w.done
	return w.fewest
}

// coldLimit bounds the time from the power's return to the VM's page.
const coldLimit = 2 * time.Minute

func runColdStart(ctx context.Context, e *Env) error {
	return e.withProbe(ctx, smallDisk, func(ctx context.Context, p *probeVM) (err error) {
		before, vm, err := p.begin(ctx, 2*time.Millisecond)
		if err != nil {
			return err
		}
		if err := p.waitAcks(ctx, 300); err != nil {
			return err
		}
		disk := vm.Spec.Disks[0].Volume
		old, err := e.Cluster.Volume(ctx, disk)
		if err != nil {
			return err
		}
		e.say("cutting the power of every node")
		if err := e.Rough.CutPower(ctx); err != nil {
			return err
		}
		on := false
		defer func() {
			if !on {
				back, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
				defer cancel()
				err = errors.Join(err, e.Rough.RestorePower(back))
			}
		}()
		began := time.Now()
		if err := e.Rough.RestorePower(ctx); err != nil {
			return err
		}
		on = true
		e.say("power is back; waiting for the cluster and the VM")
		f := e.report.Figures
		if err := waitUntil(ctx, coldLimit, 50*time.Millisecond, "the VM to run again", func() (bool, error) {
			try, cancel := context.WithTimeout(ctx, 2*time.Second)
			defer cancel()
			// The state alone may be that of before the cut: the epoch proves that a new
			// guard has taken the volumes.
			v, err := e.Cluster.Volume(try, disk)
			if err != nil || v.Status.Epoch <= old.Status.Epoch {
				return false, err
			}
			now, err := p.vmNode(try)
			return err == nil && now.Status.State == model.VMRunning && now.Status.Run != vm.Status.Run, err
		}); err != nil {
			return err
		}
		f["restarted_ms"] = ms(time.Since(began))
		if err := p.waitForPage(ctx, coldLimit); err != nil {
			return err
		}
		f["service_back_ms"] = ms(time.Since(began))
		e.say("the VM runs %.1f s after the power's return, its page answers after %.1f s", f["restarted_ms"].(float64)/1000, f["service_back_ms"].(float64)/1000)
		return judgeRestart(ctx, e, p, before)
	})
}

// judgeRestart reads back in a guest that was started anew, and waits until its
// volume is whole.
func judgeRestart(ctx context.Context, e *Env, p *probeVM, before probe.Status) error {
	after, err := p.status(ctx)
	if err != nil {
		return err
	}
	acked, _, err := p.audit(ctx)
	if err != nil {
		return err
	}
	vm, err := p.reportPauses(ctx)
	if err != nil {
		return err
	}
	r, f := e.report, e.report.Figures
	f["vms_run_twice"] = 0
	if after.Boot == before.Boot {
		f["vms_run_twice"] = 1
	}
	r.require(after.Boot != before.Boot, "the guest of before the power cut still answers")
	r.require(acked > 0, "no write was acknowledged before the cut")
	return waitWhole(ctx, e, p, vm.Status.Node)
}

// freezeLimit is larger than that of a power cut: a frozen machine's kernel goes on
// to acknowledge what is sent to its etcd member, and clients find that out first.
const freezeLimit = 12 * time.Second

func runFreeze(ctx context.Context, e *Env) error {
	return e.withProbe(ctx, smallDisk, func(ctx context.Context, p *probeVM) (err error) {
		before, vm, err := p.begin(ctx, 2*time.Millisecond)
		if err != nil {
			return err
		}
		node := vm.Status.Node
		frames, err := watchFrames(ctx, e, vm)
		if err != nil {
			return err
		}
		defer frames.stop()
		e.say("%s runs on %s; freezing that", p.name, node)
		began := time.Now()
		if err := e.Rough.FreezeNode(ctx, node); err != nil {
			return err
		}
		thawed := false
		thaw := func(ctx context.Context) error {
			if thawed {
				return nil
			}
			thawed = true
			return e.Rough.ThawNode(ctx, node)
		}
		defer func() {
			back, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
			defer cancel()
			err = errors.Join(err, thaw(back))
		}()
		if err := watchFailoverWithin(ctx, e, p, began, node, before, freezeLimit); err != nil {
			return err
		}
		now, err := p.vmNode(ctx)
		if err != nil {
			return err
		}
		e.say("thawing %s", node)
		if err := thaw(ctx); err != nil {
			return err
		}
		// Ready, and its copy in sync again: what woke up there has had its say.
		if err := waitWhole(ctx, e, p, node); err != nil {
			return err
		}
		// The others' connections to its etcd member hung as well: what follows needs
		// every session.
		if err := allReady(ctx, e); err != nil {
			return err
		}
		return judgeFreeze(ctx, e, p, frames, node, now, vm.Status.Restarts, began)
	})
}

func allReady(ctx context.Context, e *Env) error { return waitReady(ctx, e, nil) }

// waitReady waits until nodes are ready, by name; nil: all.
func waitReady(ctx context.Context, e *Env, names []string) error {
	what := "every node"
	if names != nil {
		what = strings.Join(names, ", ")
	}
	return waitUntil(ctx, time.Minute, 200*time.Millisecond, what+" to be ready", func() (bool, error) {
		nodes, err := e.Cluster.Nodes(ctx)
		for _, n := range nodes {
			if !n.Status.Ready && (names == nil || slices.Contains(names, n.Name)) {
				return false, err
			}
		}
		return err == nil && len(nodes) > 0, err
	})
}

func judgeFreeze(ctx context.Context, e *Env, p *probeVM, frames *frameWatch, node string, now model.VM, restarts int, began time.Time) error {
	end, err := p.vmNode(ctx)
	if err != nil {
		return err
	}
	late, last, err := frames.from(node, now.Status.Started)
	if err != nil {
		return err
	}
	r, f := e.report, e.report.Figures
	f["vm_restarts"], f["frames_of_old"] = end.Status.Restarts-restarts, late
	f["silent_ms"] = ms(max(0, last.Sub(began)))
	f["vm_pauses"], f["vm_paused_ms"] = end.Status.PauseCount, ms(end.Status.PausedFor)
	if late > 0 {
		f["vms_run_twice"] = 1
	}
	r.require(late == 0, "the old node sent %d frames of the VM after the new guest ran", late)
	r.require(end.Status.Restarts-restarts == 1, "the VM was restarted %d times, not once", end.Status.Restarts-restarts)
	r.require(end.Status.Run == now.Status.Run && end.Status.Node == now.Status.Node, "the thaw moved the VM: run %s on %s, was %s on %s", end.Status.Run.Short(), end.Status.Node, now.Status.Run.Short(), now.Status.Node)
	e.say("the old node was last heard %.0f ms after the freeze, and not again", f["silent_ms"])
	return nil
}
