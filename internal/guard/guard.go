package guard

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"time"

	"roseau/internal/base/clock"
	"roseau/internal/base/gc"
	"roseau/internal/base/ids"
	"roseau/internal/base/paths"
	"roseau/internal/base/size"
	"roseau/internal/base/sysmon"
	"roseau/internal/block/volume"
	"roseau/internal/core/vmguard"
	"roseau/internal/driver/bridge"
	"roseau/internal/driver/cgroup"
	"roseau/internal/driver/etcd"
	"roseau/internal/driver/guardctl"
	"roseau/internal/driver/qemu"
	"roseau/internal/driver/qmp"
	"roseau/internal/model"
	"roseau/internal/pki"
	"roseau/internal/unit"
)

// Identity is both sides of mutual TLS; package pki implements it.
type Identity interface {
	volume.Identity
	ServerTLS() *tls.Config
}

// deps are what tests replace.
type deps struct {
	open     volume.Opener
	etcd     volume.Etcd
	identity Identity
	clock    clock.Clock
	notify   *unit.Notifier
	log      *slog.Logger
}

// tickEvery is the loop's own pace; deadlines of the core come in between.
const tickEvery = 100 * time.Millisecond

// brokenError ends a guard that cannot go on: its supervisor starts another one, which
// adopts QEMU.
type brokenError struct{ error }

func (e brokenError) Unwrap() error { return e.error }

// errExit ends the guard without touching its QEMU.
var errExit = errors.New("a successor has the VM")

// Run is the process. It returns nil when ctx ends (QEMU is left to the next
// guard, stopped) or a successor has taken over.
func Run(ctx context.Context, vm ids.ID, log *slog.Logger) error {
	log = log.With("vm", vm)
	lock, err := takeLock(ctx, vm, log)
	if err != nil {
		return fmt.Errorf("start guard of vm %s: %w", vm, err)
	}
	defer lock.Close()
	gc.Set(gc.Writer)
	sysmon.Calm(log)
	// Spared by the OOM killer: its death is felt by the guest, too.
	_ = os.WriteFile("/proc/self/oom_score_adj", []byte("-800"), 0o644)
	cfg, err := guardctl.ReadConfig(vm)
	if err != nil {
		return err
	}
	notify, err := unit.NewNotifier()
	if err != nil {
		return err
	}
	identity, err := pki.Load(paths.PKI)
	if err != nil {
		return err
	}
	client, done, err := etcd.DialVoters(ctx, identity, cfg.Etcd)
	if err != nil {
		return err
	}
	defer done()
	return run(ctx, cfg, deps{open: volume.Open, etcd: client, identity: identity, clock: clock.System{}, notify: notify, log: log})
}

// guard is the running process. All fields but those under mu belong to the
// loop.
type guard struct {
	deps
	cfg      *guardctl.Config
	files    files
	core     *vmguard.Core
	queue    *queue
	wg       sync.WaitGroup
	instance ids.ID
	user     qemu.User
	net      bridge.Config
	rec      record
	ctx      context.Context // of the process: what actions start lives as long
	exit     context.CancelCauseFunc

	vols     volume.Handle // nil: not opened
	volCtx   context.Context
	volEnd   context.CancelFunc
	volDone  chan struct{} // closed when the last set is closed
	volGen   int
	proc     *qemu.Process
	group    *cgroup.Group // QEMU's; nil: it has none, and confine says why
	confine  string        // one line for the status
	starting bool
	killed   bool // Kill came while QEMU was being started
	mon      *qmp.Client
	src      *source   // of a migration away from here
	dst      *receiver // of a migration to here
	progress *guardctl.Progress
	migrated clock.Instant // when the last migration was asked for
	speed    size.Bytes    // bound of its stream, bytes a second
	patience time.Duration // how long it is tried; 0: until it is hopeless
	haltedAt time.Time     // of the last STOP, by QEMU's clock
	began    time.Time     // this process
	steps    model.StartSteps
	trimmed  clock.Instant // when the console's log was looked at

	pinging bool          // the writers' loop was asked for a sign of life
	pinged  clock.Instant // when it gave the last one; 0: not yet

	outcomeWritten bool
	noSpace        map[ids.ID]bool // volumes whose writes wait for space

	mu        sync.Mutex // protects what status readers see
	status    guardctl.Status
	changed   chan struct{} // closed and replaced at each revision
	events    []guardctl.Event
	eventSeq  uint64
	wantsMove string
	readVols  volume.Handle // vols, for readers
	badSince  clock.Instant // since when the lease is lapsed or acks are frozen
}

func run(ctx context.Context, cfg *guardctl.Config, d deps) error {
	ctx, exit := context.WithCancelCause(ctx)
	defer exit(nil)
	g := &guard{deps: d, cfg: cfg, files: files{paths.VMDir(cfg.VM)}, core: vmguard.New(cfg.Node), queue: newQueue(), noSpace: map[ids.ID]bool{},
		instance: ids.New(), ctx: ctx, exit: exit, changed: make(chan struct{}), began: d.clock.Wall()}
	close(g.closedVolumes())
	var err error
	if g.user, err = qemu.LookupUser(cfg.Accel != "tcg"); err != nil {
		return err
	}
	if err := g.files.prepare(g.user); err != nil {
		return err
	}
	g.net = network(cfg)
	defer g.wg.Wait()
	defer exit(nil) // before the wait
	if err := g.serveControl(ctx); err != nil {
		return err
	}
	g.begin(ctx)
	if cfg.Intent == guardctl.IntentIncoming {
		if err := g.listenMigration(ctx); err != nil {
			return err
		}
	}
	g.publish()
	if err := d.notify.Ready(); err != nil {
		return err
	}
	g.loop(ctx)
	cause := context.Cause(ctx)
	g.shutdown(cause)
	if broken := (brokenError{}); errors.As(cause, &broken) {
		return broken
	}
	return nil
}

func (g *guard) closedVolumes() chan struct{} {
	g.volDone = make(chan struct{})
	return g.volDone
}

// begin finds out what there is: the end of an earlier guard of this attempt, a
// living QEMU, or nothing.
func (g *guard) begin(ctx context.Context) {
	var o outcome
	if guardctl.ReadFileJSON(g.files.outcome(), &o) == nil && o.Attempt >= g.cfg.Attempt {
		g.killStrays(ctx, 0)
		g.post(vmguard.Ended{Phase: vmguard.Phase(o.Phase), Reason: o.Reason})
		return
	}
	rec, ok := g.files.readRecord()
	incoming := g.cfg.Intent == guardctl.IntentIncoming
	if ok && incoming && rec.Saved.Run != g.cfg.Run && rec.Attempt < g.cfg.Attempt {
		ok = false // of an earlier stay of this VM on this node
	}
	if ok {
		if p, err := qemu.Attach(rec.PID, rec.Start); err == nil {
			g.proc = p
			g.adoptGroup(p.PID, rec.Accel)
		}
	}
	pid := 0
	if g.proc != nil {
		pid = g.proc.PID
	}
	g.killStrays(ctx, pid)
	if ok && (g.proc != nil || rec.Saved.Move != nil || rec.Saved.Incoming) {
		g.rec = rec
		g.rec.Attempt = g.cfg.Attempt
		g.rec.Adoptions++
		g.writeRecord()
		g.post(vmguard.Adopt{Saved: rec.Saved})
		if g.proc == nil {
			g.post(vmguard.QEMUExited{})
			return
		}
		g.watch(ctx, g.proc)
		return
	}
	g.rec = record{Attempt: g.cfg.Attempt}
	if incoming && !(ok && rec.Attempt == g.cfg.Attempt) {
		g.post(vmguard.Receive{Run: g.cfg.Run, Source: g.cfg.Source})
		return
	}
	g.post(vmguard.Start{Run: ids.New()})
}

// killStrays ends QEMUs of this VM that no record names.
func (g *guard) killStrays(ctx context.Context, keep int) {
	var stray []int
	for _, pid := range qemu.Find(g.cfg.VM.String(), g.files.dir) {
		if pid != keep {
			stray = append(stray, pid)
		}
	}
	if len(stray) == 0 {
		return
	}
	g.log.Warn("killing QEMU processes that no record names", "pids", stray)
	if err := qemu.KillAll(ctx, stray); err != nil {
		g.log.Error("stray QEMU", "cause", err)
	}
}

func (g *guard) post(e vmguard.Event) { g.queue.put(item{event: e}) }

// inLoop has f run by the loop.
func (g *guard) inLoop(f func()) { g.queue.put(item{do: f}) }

// async runs f beside the loop; Run waits for it.
func (g *guard) async(f func()) { g.wg.Go(f) }

func (g *guard) loop(ctx context.Context) {
	var watchdog time.Duration
	if w := g.notify.WatchdogInterval(); w > 0 {
		watchdog = w
	}
	var barked clock.Instant // the last sign of life to the supervisor
	for ctx.Err() == nil {
		now := g.clock.Now()
		wait := tickEvery
		if next := g.core.Next(); next > 0 && next.Sub(now) < wait {
			wait = max(next.Sub(now), 0)
		}
		t := time.NewTimer(wait)
		select {
		case <-ctx.Done():
		case <-g.queue.wake:
		case <-t.C:
			g.step(vmguard.Tick{})
		}
		t.Stop()
		for _, i := range g.queue.take() {
			if i.do != nil {
				i.do()
			} else {
				g.step(i.event)
			}
		}
		g.publish()
		if now = g.clock.Now(); now.Sub(g.trimmed) > 5*time.Second {
			g.trimmed = now
			trimLog(g.files.serialLog())
		}
		if watchdog > 0 && now.Sub(barked) >= watchdog && g.volumesTurn(now, watchdog) {
			barked = now
			if err := g.notify.Watchdog(); err != nil {
				g.log.Warn("watchdog", "cause", err)
			}
		}
	}
}

// volumesTurn reports whether the writers' loop took a turn lately, and asks it
// again: a guard whose writers hang must be replaced as well.
func (g *guard) volumesTurn(now clock.Instant, every time.Duration) bool {
	h := g.vols
	if h == nil {
		g.pinged = 0
		return true
	}
	if g.pinged == 0 {
		g.pinged = now
	}
	if !g.pinging {
		g.pinging = true
		set := g.volCtx
		g.async(func() {
			err := h.Ping(set)
			g.inLoop(func() {
				g.pinging = false
				if err == nil || set.Err() != nil {
					g.pinged = g.clock.Now()
				}
			})
		})
	}
	return now.Sub(g.pinged) < 2*every
}

func (g *guard) step(e vmguard.Event) {
	g.noteStep(e)
	for _, a := range g.core.Step(g.clock.Now(), e) {
		g.carryOut(g.ctx, a)
	}
}

// shutdown leaves QEMU to the next guard: silent at once, stopped.
func (g *guard) shutdown(cause error) {
	if err := g.notify.Stopping(); err != nil {
		g.log.Warn("notify", "cause", err)
	}
	phase, _ := g.core.Phase()
	if g.proc != nil && !phase.Final() && !errors.Is(cause, errExit) {
		if err := g.net.Refresh(0); err != nil && len(g.net.Ports) > 0 {
			g.log.Error("shut ports", "cause", err)
		}
		freeze(g.proc, g.group, g.log)
		if g.group != nil { // the supervisor starts the next guard beside QEMU
			if err := g.group.Loosen(); err != nil {
				g.log.Error("loosen control group", "cause", err)
			}
		}
	}
	if g.mon != nil {
		g.mon.Close()
	}
	g.closeVolumes()
	if phase.Final() {
		g.removeGroup()
	}
}

// network names the VM's ports on this node. Eight digits of the VM's id fit
// into an interface name.
func network(cfg *guardctl.Config) bridge.Config {
	short := cfg.VM.Short()
	c := bridge.Config{Table: "roseau_" + short}
	for i, n := range cfg.NICs {
		c.Ports = append(c.Ports, bridge.Port{Tap: fmt.Sprintf("t%sn%d", short, i), Bridge: "rb" + n.Network.Short(),
			Uplink: n.Uplink, MAC: n.MAC, AllowMACSpoofing: n.AllowMACSpoofing})
	}
	return c
}
