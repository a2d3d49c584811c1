package guard

import (
	"context"
	"fmt"
	"net"
	"os"
	"strings"
	"sync/atomic"
	"time"

	"roseau/internal/base/clock"
	"roseau/internal/base/size"
	"roseau/internal/core/vmguard"
	"roseau/internal/driver/guardctl"
	"roseau/internal/driver/qemu"
	"roseau/internal/driver/qmp"
	"roseau/internal/model"
)

// source is a migration away from here, as long as it lasts.
type source struct {
	peer vmguard.Peer
	ctx  context.Context // of this migration's goroutines
	end  context.CancelFunc
	link *link         // nil: not connected
	poke chan struct{} // buffered 1: the stream's status changed

	stopped chan struct{} // closed when the guest has stopped for the last time here
	stopAt  time.Time     // when; set before
	stays   atomic.Bool   // the guest goes on here; set before end
}

func newSource(ctx context.Context, p vmguard.Peer) *source {
	ctx, end := context.WithCancel(ctx)
	return &source{peer: p, ctx: ctx, end: end, poke: make(chan struct{}, 1), stopped: make(chan struct{})}
}

// stop says that the guest has stopped.
func (s *source) stop(at time.Time) {
	select {
	case <-s.stopped:
	default:
		s.stopAt = at
		close(s.stopped)
	}
}

// migrationSpeed is the bandwidth limit when none is asked for, in bytes per
// second: none that a wire has.
const migrationSpeed = 10 * size.GiB

// acceptTimeout covers the destination's PREPARE.
const acceptTimeout = 10 * time.Second

func (g *guard) carryOutMigration(ctx context.Context, a vmguard.Action) {
	switch a := a.(type) {
	case vmguard.ConnectPeer:
		g.connectPeer(ctx, a.Peer)
	case vmguard.MigrateStart:
		g.migrateStart(a.Downtime)
	case vmguard.MigrateGo:
		g.fire("migrate-continue", map[string]any{"state": "pre-switchover"})
	case vmguard.MigrateStop:
		g.fire("migrate_cancel", nil)
	case vmguard.MigrateRelax:
		g.fire("migrate-set-parameters", map[string]any{"downtime-limit": a.Downtime.Milliseconds()})
	case vmguard.TellSwitch:
		g.tellDestination(message{Op: opSwitch, Paused: g.userPaused()})
		if g.src != nil {
			g.src.stop(g.haltedAt)
			g.log.Info("switch-over", "stopped", g.haltedAt.UTC())
		}
	case vmguard.TellCancel:
		g.tellDestination(message{Op: opCancel})
	case vmguard.TellReleased:
		g.tellDestination(message{Op: opReleased})
	case vmguard.AskPeer:
		g.askPeer(ctx, a.After)
	case vmguard.DisconnectPeer:
		if g.src != nil {
			g.src.stays.Store(true)
		}
		g.disconnect()
	default:
		g.carryOutReceiver(a)
	}
}

func (g *guard) userPaused() bool {
	for _, p := range g.core.Pauses() {
		if p == vmguard.PauseUser {
			return true
		}
	}
	return false
}

func (g *guard) tellDestination(m message) {
	if g.src == nil || g.src.link == nil {
		return
	}
	l := g.src.link
	// In order, for the next line may say more: a line fits into the socket.
	if err := l.send(m); err != nil {
		g.log.Warn("tell the destination", "op", m.Op, "cause", err)
	}
}

func (g *guard) disconnect() {
	if g.src == nil {
		return
	}
	s := g.src
	g.src = nil
	s.end()
}

// connectPeer asks the destination to take the VM.
func (g *guard) connectPeer(ctx context.Context, p vmguard.Peer) {
	g.disconnect()
	s := newSource(ctx, p)
	mctx := s.ctx
	g.src = s
	hello := message{Op: opControl, VM: g.cfg.VM, Run: g.core.Run(), Epoch: g.core.Epoch()}
	g.async(func() {
		l, err := dialPeer(mctx, g.identity, p.Node, p.Addresses, p.Port, hello)
		if err != nil {
			g.postFor(s, vmguard.PeerRefused{Text: err.Error()})
			return
		}
		defer context.AfterFunc(mctx, func() { l.conn.Close() })()
		defer l.conn.Close()
		m, err := l.receiveWithin(acceptTimeout)
		switch {
		case err != nil:
			g.postFor(s, vmguard.PeerRefused{Text: "the destination did not answer: " + err.Error()})
			return
		case m.Op != opAccept:
			g.postFor(s, vmguard.PeerRefused{Text: "the destination refused: " + m.Text})
			return
		}
		g.inLoop(func() { s.link = l })
		g.postFor(s, vmguard.PeerAccepted{})
		for {
			m, err := l.receive()
			if err != nil {
				g.inLoop(func() { s.link = nil })
				g.postFor(s, vmguard.PeerLost{})
				return
			}
			if e := answer(m); e != nil {
				g.postFor(s, e)
			}
		}
	})
}

// answer is what the destination decided, or nil.
func answer(m message) vmguard.Event {
	switch m.Op {
	case opNever:
		return vmguard.PeerNever{}
	case opCommitted:
		return vmguard.PeerCommitted{}
	}
	return nil
}

// postFor posts an event of a migration that is still the present one.
func (g *guard) postFor(s *source, e vmguard.Event) {
	g.inLoop(func() {
		if g.src == s {
			g.step(e)
		}
	})
}

// askPeer asks what became of the migration, on a connection of its own.
func (g *guard) askPeer(ctx context.Context, after time.Duration) {
	if g.src == nil { // a successor of the guard that began it
		g.src = newSource(ctx, vmguard.Peer{})
		if m := g.rec.Saved.Move; m != nil {
			g.src.peer = m.Peer
		}
	}
	s := g.src
	g.async(func() {
		if clock.Sleep(s.ctx, after) != nil {
			return
		}
		l, err := dialPeer(s.ctx, g.identity, s.peer.Node, s.peer.Addresses, s.peer.Port,
			message{Op: opAsk, VM: g.cfg.VM, Run: g.core0Run()})
		if err != nil {
			g.postFor(s, vmguard.PeerLost{})
			return
		}
		defer l.conn.Close()
		m, err := l.receiveWithin(3 * time.Second)
		if e := answer(m); err == nil && e != nil {
			g.postFor(s, e)
			return
		}
		g.postFor(s, vmguard.PeerLost{})
	})
}

// core0Run is the run for goroutines beside the loop: as last published.
func (g *guard) core0Run() (run [16]byte) {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.status.Run
}

// capabilities and parameters persist in QEMU between attempts: all that matter
// are set each time.
func capabilities() map[string]any {
	var list []map[string]any
	for _, c := range []struct {
		name string
		on   bool
	}{
		{"events", true}, {"pause-before-switchover", true}, {"late-block-activate", true}, {"auto-converge", true},
		{"xbzrle", false}, {"compress", false}, {"multifd", false}, {"postcopy-ram", false}, {"release-ram", false},
		{"return-path", false}, {"dirty-bitmaps", false}, {"background-snapshot", false}, {"validate-uuid", true},
	} {
		list = append(list, map[string]any{"capability": c.name, "state": c.on})
	}
	return map[string]any{"capabilities": list}
}

func parameters(downtime time.Duration, speed size.Bytes) map[string]any {
	return map[string]any{
		"downtime-limit": downtime.Milliseconds(), "max-bandwidth": int64(speed),
		"cpu-throttle-initial": 20, "cpu-throttle-increment": 10, "max-cpu-throttle": maxThrottle, "throttle-trigger-threshold": 50,
		"announce-initial": 10, "announce-step": 50, "announce-max": 550, "announce-rounds": 5,
	}
}

// migrateStart connects QEMU to the destination's by way of both guards, and
// watches its progress.
func (g *guard) migrateStart(downtime time.Duration) {
	s, mon := g.src, g.mon
	if s == nil || mon == nil {
		g.post(vmguard.StreamStatus{Status: "failed", Error: noMonitor("migrate").Error()})
		return
	}
	speed := g.speed
	fail := func(err error) {
		g.postFor(s, vmguard.StreamStatus{Status: "failed", Error: err.Error()})
	}
	g.handOver(s, g.proc)
	g.async(func() {
		g.files.remove(g.files.migrateOut())
		l, err := net.Listen("unix", g.files.migrateOut())
		if err != nil {
			fail(err)
			return
		}
		ownIfRoot(g.files.migrateOut(), g.user)
		if err := os.Chmod(g.files.migrateOut(), 0o600); err != nil {
			fail(err)
			return
		}
		g.async(func() { g.carryStream(s, l) })
		for _, c := range []struct {
			command string
			args    map[string]any
		}{
			{"migrate-set-capabilities", capabilities()},
			{"migrate-set-parameters", parameters(downtime, speed)},
			{"migrate", map[string]any{"uri": "unix:" + g.files.migrateOut()}},
		} {
			if err := runQMP(s.ctx, mon, 10*time.Second, c.command, c.args, nil); err != nil {
				l.Close()
				fail(err)
				return
			}
		}
		g.followStream(s)
	})
}

// carryStream takes QEMU's one connection and carries it to the destination.
func (g *guard) carryStream(s *source, l net.Listener) {
	defer context.AfterFunc(s.ctx, func() { l.Close() })()
	qemuSide, err := l.Accept()
	l.Close()
	if err != nil {
		return // cancelled, or QEMU never came: its status says so
	}
	defer context.AfterFunc(s.ctx, func() { qemuSide.Close() })()
	far, err := dialPeer(s.ctx, g.identity, s.peer.Node, s.peer.Addresses, s.peer.Port, message{Op: opStream, VM: g.cfg.VM})
	if err != nil {
		g.log.Warn("migration stream", "cause", err)
		qemuSide.Close()
		return
	}
	if err := pipe(far.conn, qemuSide); err != nil {
		g.log.Debug("migration stream ended", "cause", err)
	}
}

// streamInfo is query-migrate.
type streamInfo struct {
	Status   string `json:"status"`
	Error    string `json:"error-desc"`
	Total    int64  `json:"total-time"` // milliseconds
	Downtime int64  `json:"downtime"`   // milliseconds
	Throttle int    `json:"cpu-throttle-percentage"`
	RAM      struct {
		MBPS        float64 `json:"mbps"` // megabits a second
		Dirty       int64   `json:"dirty-pages-rate"`
		PageSize    int64   `json:"page-size"`
		Transferred int64   `json:"transferred"`
		Remaining   int64   `json:"remaining"`
		Total       int64   `json:"total"`
		Syncs       int     `json:"dirty-sync-count"`
	} `json:"ram"`
}

// followStream publishes the progress and makes sure that the core hears of the
// stream's end, event or not.
func (g *guard) followStream(s *source) {
	const askAgain = 20
	asked := 0
	for s.ctx.Err() == nil {
		var mon = g.monitorNow()
		if mon == nil {
			return // QEMU ended: that is an event of its own
		}
		var in streamInfo
		err := runQMP(s.ctx, mon, 5*time.Second, "query-migrate", nil, &in)
		if err == nil && in.Status == "completed" && in.Downtime == 0 && asked < askAgain {
			// QEMU says completed a moment before it has summed up.
			asked++
			if clock.Sleep(s.ctx, qemu.Poll) == nil {
				continue
			}
		}
		if err == nil {
			g.inLoop(func() { g.streamProgress(s, in) })
			switch in.Status {
			case "", "none", "cancelled", "failed", "completed":
				status := in.Status
				if status == "" || status == "none" {
					status = "cancelled"
				}
				if in.Error != "" {
					g.log.Warn("migration stream failed", "cause", in.Error)
				}
				g.postFor(s, vmguard.StreamStatus{Status: status, Error: strings.TrimSpace(in.Error)})
				return
			}
		}
		select {
		case <-s.ctx.Done():
			return
		case <-s.poke:
		case <-time.After(200 * time.Millisecond):
		}
	}
}

// streamEvent is a MIGRATION event at the source. The end is not passed on but
// asked for by followStream, which reads the figures with it: the core will have
// QEMU killed.
func (g *guard) streamEvent(e vmguard.StreamStatus) {
	if g.src != nil && (e.Status == "completed" || e.Status == "failed" || e.Status == "cancelled") {
		select {
		case g.src.poke <- struct{}{}:
		default:
		}
		return
	}
	g.step(e)
}

// monitorNow reads g.mon from beside the loop.
func (g *guard) monitorNow() *qmp.Client {
	ch := make(chan *qmp.Client, 1)
	g.inLoop(func() { ch <- g.mon })
	select {
	case m := <-ch:
		return m
	case <-time.After(time.Second): // the loop has ended
		return nil
	}
}

func (g *guard) streamProgress(s *source, in streamInfo) {
	if g.src != s || g.progress == nil {
		return
	}
	p := g.progress
	p.Done, p.Total, p.Round = size.Bytes(in.RAM.Total-in.RAM.Remaining), size.Bytes(in.RAM.Total), in.RAM.Syncs
	p.Rate, p.DirtyRate, p.Throttle = size.Bytes(in.RAM.MBPS*1e6/8), size.Bytes(in.RAM.Dirty*in.RAM.PageSize), in.Throttle
	p.Remaining = remaining(in.RAM.Remaining, int64(p.Rate), int64(p.DirtyRate))
	if s.link != nil {
		p.Via = s.link.conn.RemoteAddr().String()
	}
	if why := hopeless(in, p.Rate, p.DirtyRate, g.clock.Now().Sub(g.migrated), g.patience); why != "" {
		g.step(vmguard.GaveUp{Text: why})
	}
	if in.Downtime > 0 {
		p.Downtime = time.Duration(in.Downtime) * time.Millisecond
	}
}

// remaining is how long the rest takes while the guest goes on dirtying; 0: it
// does not get less.
func remaining(left, rate, dirtyRate int64) time.Duration {
	if left <= 0 || rate <= dirtyRate {
		return 0
	}
	return time.Duration(float64(left) / float64(rate-dirtyRate) * float64(time.Second))
}

// The end of a migration that does not converge: the guest was slowed down as far
// as it goes (max-cpu-throttle) and the downtime limit raised to its top, for this
// long and so many rounds, and what is left would still take longer.
const (
	hopelessAfter    = 3 * time.Minute
	hopelessRounds   = 10
	hopelessDowntime = 2 * time.Second
	maxThrottle      = 80 // percent
)

// hopeless says why the stream will not converge, or "". With a patience it is
// over then, if what is left does not fit into the downtime.
func hopeless(in streamInfo, rate, dirtyRate size.Bytes, age, patience time.Duration) string {
	if in.Status != "active" || rate > 0 && float64(in.RAM.Remaining)/float64(rate) < hopelessDowntime.Seconds() {
		return ""
	}
	tried := age >= hopelessAfter && in.RAM.Syncs >= hopelessRounds && in.Throttle >= maxThrottle && rate > 0
	if !tried && (patience == 0 || age < patience) {
		return ""
	}
	return fmt.Sprintf("it does not converge: after %s and %d rounds, with the guest slowed down by %d %%, %s are left, %s/s are sent and %s/s dirtied; "+
		"give it more bandwidth or time, or pause the guest and move it then", age.Round(time.Second), in.RAM.Syncs, in.Throttle, size.Bytes(in.RAM.Remaining), rate, dirtyRate)
}

// migrate is POST /migrate, in the loop.
func (g *guard) migrate(r guardctl.MigrateRequest) error {
	if why := g.core.CanMigrate(); why != "" {
		return conflict("migrate vm %s: %s", g.cfg.Name, why)
	}
	g.progress = &guardctl.Progress{Active: true, MigrationStatus: model.MigrationStatus{
		From: g.cfg.NodeName, To: r.TargetName, Why: r.Why, Started: g.clock.Wall()}}
	g.migrated = g.clock.Now()
	g.speed, g.patience = r.MaxBandwidth, r.Patience
	if g.speed <= 0 {
		g.speed = migrationSpeed
	}
	g.report("info", fmt.Sprintf("migration to %s asked for", r.TargetName))
	g.step(vmguard.UserMigrate{DowntimeLimit: r.DowntimeLimit, Target: vmguard.Peer{Node: r.Target,
		Name: r.TargetName, Addresses: r.Addresses, Port: r.Port}})
	return nil
}
