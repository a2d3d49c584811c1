// Package volumeguard is the process that writes one volume without a VM: to
// serve it, to import or export an image, or to repair it while nobody uses it.
// It wires block/volume to its configuration, its control socket and its
// supervisor; it decides only when the work is done.
//
// It makes a new run at every start, takes the volume only after PREPARE, and
// releases it when told (SIGTERM, POST /release) or, for maintenance, when every
// copy is in sync. It exits with 0 whenever it must not be started again.
package volumeguard

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"roseau/internal/base/errs"
	"roseau/internal/base/gc"
	"roseau/internal/base/ids"
	"roseau/internal/base/paths"
	"roseau/internal/base/sysmon"
	"roseau/internal/block/volume"
	"roseau/internal/core/repl"
	"roseau/internal/driver/ctlsock"
	"roseau/internal/driver/etcd"
	"roseau/internal/driver/volumectl"
	"roseau/internal/model"
	"roseau/internal/pki"
	"roseau/internal/unit"
)

// Timing.
const (
	lockWait    = 5 * time.Second  // for a predecessor that is just ending
	releaseTime = 20 * time.Second // then the lease runs out by itself
	pace        = 250 * time.Millisecond
)

// Run is the process. It returns when the volume is released (nil), when
// another writer has it (nil), or on an error after which a restart may help.
// Cancelling ctx means release.
func Run(ctx context.Context, vol ids.ID, log *slog.Logger) error {
	cfg, err := volumectl.ReadConfig(vol)
	if err != nil {
		return err
	}
	lock, err := takeLock(ctx, paths.VolumeLock(vol))
	if err != nil {
		return fmt.Errorf("start writer of volume %s: %w", vol, err)
	}
	defer lock.Close()
	notify, err := unit.NewNotifier()
	if err != nil {
		return err
	}
	gc.Set(gc.Writer)
	sysmon.Calm(log)
	identity, err := pki.Load(paths.PKI)
	if err != nil {
		return err
	}
	client, done, err := etcd.DialVoters(ctx, identity, cfg.Etcd)
	if err != nil {
		return err
	}
	defer done()
	return run(ctx, cfg, log.With("vol", vol), notify, volume.Open, volume.Config{
		Cluster: cfg.Cluster, Generation: cfg.Generation, Node: cfg.Node, Guard: ids.New(), Run: ids.New(), Purpose: cfg.Purpose,
		Volumes: []ids.ID{vol}, ReadOnly: cfg.Purpose == repl.PurposeExport,
		Etcd: client, Identity: identity, Nodes: directory(cfg.Nodes), Log: log,
	})
}

// takeLock waits a little for the lock; it is held until the process ends.
func takeLock(ctx context.Context, path string) (*os.File, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o711); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, lockWait)
	defer cancel()
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return f, nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) || !pause(ctx) {
			return nil, errors.Join(errs.New(errs.Conflict, "another writer of it runs on this node: lock %s: %w", path, err), f.Close())
		}
	}
}

func pause(ctx context.Context) bool {
	t := time.NewTimer(pace)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}

// directory is the Directory of a config file.
type directory []volumectl.Peer

// StorageAddrs lists the storage network's addresses first.
func (d directory) StorageAddrs(node ids.ID) []string {
	for _, p := range d {
		if p.ID == node {
			return StorageAddrs(p.Addresses)
		}
	}
	return nil
}

// StorageAddrs returns the addresses of a node's storage process, best first,
// each once.
func StorageAddrs(addrs map[model.NetworkRole][]string) []string {
	var out []string
	seen := map[string]bool{}
	for _, role := range []model.NetworkRole{model.RoleStorage, model.RoleCluster} {
		for _, ip := range addrs[role] {
			if !seen[ip] {
				seen[ip] = true
				out = append(out, net.JoinHostPort(ip, strconv.Itoa(paths.PortStorage)))
			}
		}
	}
	return out
}

// proc is the running process.
type proc struct {
	cfg     *volumectl.Config
	log     *slog.Logger
	set     volume.Handle
	socket  string
	release context.CancelFunc // POST /release
	broken  chan error         // capacity 1: why this process cannot go on and must be started again

	mu     sync.Mutex
	phase  volumectl.Phase
	reason string
}

func run(ctx context.Context, cfg *volumectl.Config, log *slog.Logger, notify *unit.Notifier, open volume.Opener, vc volume.Config) error {
	work, release := context.WithCancel(ctx)
	defer release()
	p := &proc{cfg: cfg, log: log, release: release, broken: make(chan error, 1), phase: volumectl.PhasePreparing}
	set, err := open(work, vc)
	if err != nil {
		return err
	}
	p.set = set
	var wg sync.WaitGroup
	serving, stopServing := context.WithCancel(context.WithoutCancel(ctx))
	defer func() {
		stopServing()
		set.Close()
		wg.Wait()
	}()
	control, err := ctlsock.Listen(paths.VolumeControl(cfg.Volume))
	if err != nil {
		return err
	}
	wg.Go(func() { p.serveControl(serving, control) })
	if cfg.Purpose != repl.PurposeMaintenance {
		p.socket = cfg.Socket
		if p.socket == "" {
			p.socket = paths.VolumeNBD(cfg.Volume)
		}
		l, err := ctlsock.Listen(p.socket)
		if err != nil {
			return err
		}
		defer os.Remove(p.socket)
		wg.Go(func() {
			serve := set.Serve
			if cfg.Snapshot != 0 {
				serve = func(ctx context.Context, vol ids.ID, l net.Listener) error {
					return set.ServeSnapshot(ctx, vol, cfg.Snapshot, l)
				}
			}
			if err := serve(serving, cfg.Volume, l); err != nil {
				p.breaks(fmt.Errorf("serve volume %s: %w", cfg.Volume, err))
			}
		})
	}
	wg.Go(func() { p.watchdog(serving, notify) })
	wg.Go(func() { p.logEvents() })
	if err := notify.Ready(); err != nil {
		return err
	}
	err = p.work(work)
	if errs.Kind(err) == errs.Fenced {
		p.enter(volumectl.PhaseLost, err.Error())
		log.Warn("another writer has the volume", "cause", err)
		return nil
	}
	if broken := (brokenError{}); errors.As(err, &broken) {
		return err // a release would wait for whom it cannot reach
	}
	return p.finish(ctx, notify, err)
}

// brokenError ends a process that cannot go on: its supervisor starts it again.
type brokenError struct{ error }

func (e brokenError) Unwrap() error { return e.error }

// work takes the volume and stays until ctx ends, maintenance is done, or the
// volume is lost.
func (p *proc) work(ctx context.Context) error {
	if err := p.take(ctx); err != nil {
		return err
	}
	p.enter(volumectl.PhaseServing, "")
	for _, r := range p.cfg.Replace {
		err := p.set.ReplaceDisk(ctx, volume.Replace{Volume: p.cfg.Volume, Old: r.Old, New: r.New, Node: r.Node, Segments: r.Segments, Live: r.Live})
		if err != nil && errs.Kind(err) != errs.Conflict { // a conflict: it was replaced by an earlier run
			return err
		}
	}
	var scrub scrubWait
	lingers := 0
	if p.cfg.Merge {
		lingers = mergeLinger
	}
	for pause(ctx) {
		if err := p.isBroken(); err != nil {
			return err
		}
		st := p.set.Status()
		switch st.Phase {
		case volume.PhaseFenced, volume.PhaseInvalid, volume.PhaseStopped:
			return errs.New(errs.Fenced, "the writer of volume %s is %s", p.cfg.Volume, st.Phase)
		}
		if p.cfg.Purpose == repl.PurposeMaintenance && st.Phase == volume.PhaseServing && st.Lease && healthy(st) && scrub.over(ctx, p, st) {
			if lingers--; lingers >= 0 {
				continue
			}
			p.log.Info("every copy is in sync and nothing waits for repair, release")
			return nil
		}
	}
	return nil
}

// mergeLinger is how many looks a writer stays that was opened for merges: four
// heartbeats, which carry its flush mark.
const mergeLinger = int(2 * time.Second / pace)

// scrubLinger is how many looks a writer stays after its scrub has ended, so that
// whoever asked for it can read the outcome: about half a minute.
const scrubLinger = int(30 * time.Second / pace)

// scrubWait holds a maintenance writer until the comparison that was asked for
// has ended.
type scrubWait struct {
	asked bool
	ended int // looks since its end
}

func (s *scrubWait) over(ctx context.Context, p *proc, st volume.Status) bool {
	if !p.cfg.Scrub {
		return true
	}
	if !s.asked {
		if err := p.set.Scrub(ctx, p.cfg.Volume, false); err != nil {
			p.log.Info("scrub is not begun yet", "cause", err)
			return false
		}
		s.asked = true
		return false
	}
	for _, v := range st.Volumes {
		if v.Scrub.Running || v.Scrub.Runs == 0 {
			s.ended = 0
			return false
		}
	}
	s.ended++
	return s.ended > scrubLinger
}

func healthy(st volume.Status) bool {
	for _, v := range st.Volumes {
		if !v.Healthy || v.Healing > 0 || v.Rollback != 0 || !v.Parent.IsZero() {
			return false
		}
	}
	return len(st.Volumes) > 0
}

// take repeats PREPARE until the volume may be taken, and takes it.
func (p *proc) take(ctx context.Context) error {
	for {
		r, err := p.set.Prepare(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if err == nil {
			err = p.isBroken()
		}
		if err != nil {
			return err
		}
		if !r.Ready {
			p.enter(volumectl.PhasePreparing, r.Text)
			continue // the core repeats its rounds at its own pace
		}
		p.enter(volumectl.PhaseTaking, "")
		err = p.set.Take(ctx, volume.Claim{})
		if err == nil || errs.Kind(err) != errs.Conflict || ctx.Err() != nil {
			return err
		}
		p.log.Info("take again", "cause", err)
	}
}

// finish releases what is held. A release that cannot be confirmed costs the
// next writer the wait for the lease, nothing else.
func (p *proc) finish(ctx context.Context, notify *unit.Notifier, cause error) error {
	notify.Stopping()
	held := p.set.Status().Phase
	if held != volume.PhaseServing && held != volume.PhaseStalled {
		return cause
	}
	p.enter(volumectl.PhaseReleasing, "")
	rctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), releaseTime)
	defer cancel()
	if err := p.set.Release(rctx); err != nil {
		return errors.Join(cause, err)
	}
	p.enter(volumectl.PhaseReleased, "")
	return cause
}

// watchdog tells the supervisor that the event loop turns.
func (p *proc) watchdog(ctx context.Context, notify *unit.Notifier) {
	every := notify.WatchdogInterval()
	if every == 0 {
		return
	}
	t := time.NewTicker(every)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
		if p.set.Ping(ctx) == nil {
			notify.Watchdog()
		}
	}
}

// breaks ends the process with an error, so that its supervisor starts it again.
func (p *proc) breaks(err error) {
	select {
	case p.broken <- brokenError{err}:
	default: // it ends already
	}
}

// isBroken returns why the process must end with an error, or nil.
func (p *proc) isBroken() error {
	select {
	case err := <-p.broken:
		return err
	default:
		return nil
	}
}

func (p *proc) logEvents() {
	for e := range p.set.Events() {
		if e.Kind == volume.EventExhausted {
			p.breaks(errs.New(errs.Exhausted, "write volume %s: %s", p.cfg.Volume, e.Text))
		}
		if e.Kind == volume.EventFenced {
			p.log.Warn("fenced", "node", e.By.Node, "run", e.By.Run, "epoch", e.By.Epoch)
		}
	}
}

func (p *proc) enter(ph volumectl.Phase, reason string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.phase != ph || p.reason != reason {
		p.log.Info("volume writer", "phase", ph, "reason", reason)
	}
	p.phase, p.reason = ph, reason
}
