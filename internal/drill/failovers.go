package drill

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"roseau/internal/base/errs"
	"roseau/internal/model"
)

// FailoverRun is one power cut as it was seen from outside, and the steps of the
// restart as the nodes tell of them, all in milliseconds since the cut.
type FailoverRun struct {
	Time    time.Time `json:"time"`
	Version string    `json:"version"`
	Leader  bool      `json:"leader"` // the node had etcd's leader, and so the HA manager, too
	From    string    `json:"from"`
	To      string    `json:"to"`
	// Manages is when the next manager went to work; 0: no other one did.
	Manages  float64 `json:"manages_ms,omitempty"`
	Elected  float64 `json:"elected_ms,omitempty"` // since when it has seen a leader; below 0: since before the cut
	Detected float64 `json:"detected_ms"`          // the recovery was begun
	Guard    float64 `json:"guard_ms"`             // the steps of model.StartSteps
	QEMU     float64 `json:"qemu_ms"`
	Granted  float64 `json:"granted_ms"`
	Taken    float64 `json:"taken_ms"`
	Resumed  float64 `json:"resumed_ms"`
	// Shown is when the API outside showed the VM running on another node: the
	// figure that is judged.
	Shown  float64 `json:"shown_ms"`
	Page   float64 `json:"page_ms"` // the guest's page answers
	Acked  int     `json:"writes_acked"`
	Lost   int     `json:"writes_lost"`
	Twice  bool    `json:"ran_twice"` // the guest of before the cut still answers
	Load   string  `json:"load_average"`
	Whole  float64 `json:"whole_ms"` // from the return of power until node and copies are whole
	Reason string  `json:"reason,omitempty"`
}

var failovers = Test{
	Name:    "failovers",
	Summary: "cut the power of one VM's node again and again (--runs), and half as often that of a node that leads as well",
	Method: "as node-failure, each cut judged by itself: every flushed write read back; median and worst of all cuts against the aims, " +
		"the steps of each restart as the nodes tell of them",
	run: runFailovers,
}

// failoverAim bounds median and worst time from a cut to the running VM.
type failoverAim struct{ median, worst time.Duration }

var (
	plainAim  = failoverAim{4 * time.Second, 6 * time.Second}
	leaderAim = failoverAim{5 * time.Second, 8 * time.Second}
)

func runFailovers(ctx context.Context, e *Env) error {
	done, err := readKept[FailoverRun](e.Repeat.Keep)
	if err != nil {
		return err
	}
	plain := e.Repeat.Runs
	if plain == 0 {
		plain = 6
	}
	if _, more := nextFailover(done, plain); more {
		err = e.withProbe(ctx, smallDisk, func(ctx context.Context, p *probeVM) error {
			done, err = failOn(ctx, e, p, done, plain)
			return err
		})
	}
	judgeFailovers(e, done)
	if _, more := nextFailover(done, plain); more && err == nil {
		e.say("%d of %d cuts are done: run it again for the rest", len(done), plain+plain/2)
	}
	if e.Repeat.Markdown != "" {
		err = errors.Join(err, os.WriteFile(e.Repeat.Markdown, []byte(failoversPage(done, e.Repeat.Commit)), 0o644))
	}
	return err
}

// nextFailover tells whether the next cut is of a leader, and whether there is a
// next one: plain cuts in all, and half as many of leaders, spread among them.
func nextFailover(done []FailoverRun, plain int) (leader, more bool) {
	plains, leaders := 0, 0
	for _, r := range done {
		if r.Leader {
			leaders++
		} else {
			plains++
		}
	}
	switch {
	case leaders < min(plains, plain)/2:
		return true, true
	case plains < plain:
		return false, true
	}
	return false, false
}

func failOn(ctx context.Context, e *Env, p *probeVM, done []FailoverRun, plain int) ([]FailoverRun, error) {
	began := time.Now()
	for {
		leader, more := nextFailover(done, plain)
		if !more || e.Repeat.Within != 0 && time.Since(began) >= e.Repeat.Within {
			return done, nil
		}
		run, err := failOnce(ctx, e, p, leader)
		if err != nil {
			return done, err
		}
		done = append(done, run)
		if err := keepOne(e.Repeat.Keep, run); err != nil {
			return done, err
		}
		e.say("%2d: %s -> %s%s: runs after %.0f ms, page after %.0f ms, %d of %d writes lost, load %s", len(done), run.From, run.To,
			map[bool]string{true: " (it led)"}[leader], run.Shown, run.Page, run.Lost, run.Acked, run.Load)
	}
}

// failOnce brings VM and leader where they should be, cuts, watches, reads back and
// restores.
func failOnce(ctx context.Context, e *Env, p *probeVM, leader bool) (run FailoverRun, err error) {
	run = FailoverRun{Time: time.Now(), Version: e.Version, Leader: leader}
	before, vm, err := p.begin(ctx, 5*time.Millisecond)
	if err != nil {
		return run, err
	}
	if run.From, err = bringTogether(ctx, e, p, vm, leader); err != nil {
		return run, err
	}
	if err := p.waitAcks(ctx, 50); err != nil {
		return run, err
	}
	run.Load = LoadAverage()
	cut, err := e.Faults.CutNode(ctx, run.From)
	if err != nil {
		return run, err
	}
	defer func() {
		back, cancel := context.WithTimeout(context.WithoutCancel(ctx), 3*time.Minute)
		defer cancel()
		began := time.Now()
		err = errors.Join(err, restoreNode(back, e, p, run.From), e.waitOutlook(back, 1))
		run.Whole = ms(time.Since(began))
	}()
	now, shown, err := p.runsElsewhere(ctx, cut, []string{run.From}, vm.Status.Run.String())
	if err != nil {
		return run, err
	}
	run.To, run.Shown = now.Status.Node, ms(shown)
	if err := p.waitForPage(ctx, 2*time.Minute); err != nil {
		return run, err
	}
	run.Page = ms(time.Since(cut))
	after, err := p.status(ctx)
	if err != nil {
		return run, err
	}
	run.Twice = after.Boot == before.Boot
	if run.Acked, run.Lost, err = p.readBack(ctx); err != nil {
		return run, err
	}
	return run, run.learnSteps(ctx, e, p, cut)
}

// bringTogether moves the VM to the node that leads, or away from it, and returns
// the VM's node.
func bringTogether(ctx context.Context, e *Env, p *probeVM, vm model.VM, leader bool) (string, error) {
	leads, err := e.Cluster.Leader(ctx)
	if err != nil {
		return "", err
	}
	if (vm.Status.Node == leads) == leader {
		return vm.Status.Node, nil
	}
	to := leads
	if !leader {
		nodes, err := e.Cluster.Nodes(ctx)
		if err != nil {
			return "", err
		}
		for _, n := range nodes {
			if n.Name != leads && n.Status.Ready {
				to = n.Name
			}
		}
	}
	if err := e.Cluster.Migrate(ctx, p.name, to); err != nil {
		return "", err
	}
	if err := p.runsOn(ctx, to, true, 30*time.Second); err != nil {
		return "", err
	}
	if now, err := e.Cluster.Leader(ctx); err != nil || (now == to) != leader {
		return "", errors.Join(err, errs.New(errs.Conflict, "cut a node: %s leads now, and the VM is on %s", now, to).WithHint("run it again"))
	}
	return to, nil
}

// runsElsewhere waits until the API shows a new run of the VM, on none of the nodes
// that are off.
func (p *probeVM) runsElsewhere(ctx context.Context, cut time.Time, off []string, run string) (vm model.VM, took time.Duration, err error) {
	err = waitUntil(ctx, 60*time.Second, 20*time.Millisecond, p.name+" to run on another node", func() (bool, error) {
		try, cancel := context.WithTimeout(ctx, 2*time.Second)
		defer cancel()
		v, err := p.vmNode(try)
		if err != nil || v.Status.State != model.VMRunning || slices.Contains(off, v.Status.Node) || v.Status.Run.String() == run {
			return false, err
		}
		vm = v
		return true, nil
	})
	return vm, time.Since(cut), err
}

// learnSteps reads what the nodes noted of the restart. Statuses and events are
// written beside it, so they may come later.
func (r *FailoverRun) learnSteps(ctx context.Context, e *Env, p *probeVM, cut time.Time) error {
	since := func(t time.Time) float64 { return ms(t.Sub(cut)) }
	return waitUntil(ctx, 20*time.Second, 100*time.Millisecond, "the steps of the restart", func() (bool, error) {
		vm, err := p.vmNode(ctx)
		if err != nil {
			return false, err
		}
		s := vm.Status.Steps
		if s == nil || s.Resumed.Before(cut) {
			return false, errs.New(errs.Unavailable, "the guard's steps are not shown")
		}
		r.Guard, r.QEMU, r.Granted, r.Taken, r.Resumed = since(s.Guard), since(s.QEMU), since(s.Granted), since(s.Taken), since(s.Resumed)
		r.Shown = max(r.Shown, r.Resumed)
		events, err := e.Cluster.Events(ctx, cut)
		if err != nil {
			return false, err
		}
		for _, ev := range events {
			switch {
			case ev.Subject == "vm "+p.name && strings.HasPrefix(ev.Text, "recovers from") && r.Detected == 0:
				r.Detected, r.Reason = since(ev.Time), ev.Text
			case ev.Subject == "cluster" && ev.Data["leader_since"] != "":
				at, err := time.Parse(time.RFC3339Nano, ev.Data["leader_since"])
				if err == nil && ev.Time.Before(s.Guard) {
					r.Manages, r.Elected = since(ev.Time), since(at)
				}
			}
		}
		if r.Detected == 0 || r.Leader && r.Manages == 0 {
			return false, errs.New(errs.Unavailable, "no event tells of the recovery")
		}
		return true, nil
	})
}

// waitOutlook waits until so many nodes may fail.
func (e *Env) waitOutlook(ctx context.Context, free int) error {
	last := ""
	err := waitUntil(ctx, 2*time.Minute, 200*time.Millisecond, fmt.Sprintf("any %d nodes to be free to fail", free), func() (bool, error) {
		n, text, err := e.Cluster.Outlook(ctx)
		last = text
		return err == nil && n >= free, err
	})
	if err != nil {
		return fmt.Errorf("%w (%s)", err, last)
	}
	return nil
}
