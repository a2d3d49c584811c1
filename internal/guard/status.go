package guard

import (
	"reflect"
	"slices"
	"strings"
	"time"

	"roseau/internal/block/volume"
	"roseau/internal/core/vmguard"
	"roseau/internal/driver/guardctl"
	"roseau/internal/model"
)

// publish renews what readers see, from the loop, and writes down a final
// phase.
func (g *guard) publish() {
	phase, reason := g.core.Phase()
	now := g.clock.Now()
	s := guardctl.Status{VM: g.cfg.VM, Node: g.cfg.Node, Attempt: g.cfg.Attempt, Phase: guardctl.Phase(phase), Reason: reason,
		Run: g.core.Run(), PortOpen: g.core.PortOpen(now), Instance: g.instance, Restarts: g.core.Restarts(),
		Adoptions: g.rec.Adoptions, Accel: g.rec.Accel.Name, AccelReason: g.rec.Accel.Reason, CPUModel: g.rec.CPUModel, Started: g.rec.PoweredOn,
		Confinement: g.confine}
	if g.steps != (model.StartSteps{}) {
		steps := g.steps
		s.Steps = &steps
	}
	for _, p := range g.core.Pauses() {
		s.Pauses = append(s.Pauses, string(p))
	}
	s.State = state(phase, s.Pauses, g.core)
	if g.proc != nil {
		s.QEMUPID = g.proc.PID
	}
	if g.progress != nil {
		if g.progress.Active {
			g.progress.Elapsed = now.Sub(g.migrated)
		}
		g.progress.Phase = string(g.core.Migration())
		g.endProgress(phase)
		p := *g.progress
		s.Migration = &p
	}
	if g.dst != nil {
		s.Incoming = &guardctl.Incoming{Ready: g.core.Ready(), Port: g.dst.port, Phase: string(g.core.Migration())}
		if phase == vmguard.Lost {
			s.Incoming.Error = reason
		}
	}
	if phase.Final() {
		g.writeOutcome(s)
		if g.proc == nil && !g.starting {
			g.removeGroup()
		}
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	s.WantsMove = g.wantsMove
	s.Events = g.events
	old := g.status
	s.Revision = old.Revision
	if worthWaking(old, s) {
		s.Revision++
		close(g.changed)
		g.changed = make(chan struct{})
	}
	g.status = s
}

// endProgress closes the books of a migration that is over.
func (g *guard) endProgress(phase vmguard.Phase) {
	p := g.progress
	if !p.Active || g.core.Migration() != "" {
		return
	}
	p.Active = false
	g.disconnect()
	if phase != vmguard.Moved {
		g.mu.Lock()
		for _, e := range slices.Backward(g.events) {
			if strings.Contains(e.Text, "migration") && e.Level != "info" {
				p.Error = e.Text
				break
			}
		}
		g.mu.Unlock()
		if p.Error == "" {
			p.Error = "it stays here"
		}
	}
}

// worthWaking compares without what changes all the time.
func worthWaking(a, b guardctl.Status) bool {
	for _, s := range []*guardctl.Status{&a, &b} {
		s.Revision, s.LeaseLeft, s.PausedFor, s.Volumes = 0, 0, 0, nil
		if s.Migration != nil {
			m := *s.Migration
			m.Elapsed = 0
			s.Migration = &m
		}
	}
	return a.VM.IsZero() || !reflect.DeepEqual(a, b)
}

func (g *guard) writeOutcome(s guardctl.Status) {
	if g.outcomeWritten {
		return
	}
	g.outcomeWritten = true
	if err := guardctl.WriteFileJSON(g.files.outcome(), outcome{Attempt: s.Attempt, Phase: s.Phase, Reason: s.Reason}); err != nil {
		g.log.Error("write outcome", "cause", err)
	}
}

// state is the phase in the words of the API.
func state(p vmguard.Phase, pauses []string, c *vmguard.Core) model.VMState {
	starting := model.VMStarting
	if c.Restarts() > 0 {
		starting = model.VMRecovering
	}
	switch p {
	case vmguard.Starting, vmguard.Preparing, vmguard.Taking:
		return starting
	case vmguard.Incoming:
		return model.VMMigrating
	case vmguard.Stopping:
		return model.VMStopping
	case vmguard.Stopped, vmguard.Moved, vmguard.Lost:
		return model.VMStopped
	case vmguard.Failed:
		return model.VMFailed
	}
	switch {
	case c.Migration() != "":
		return model.VMMigrating
	case len(pauses) == 1 && pauses[0] == string(vmguard.PauseLease):
		return model.VMPausedLease
	case len(pauses) > 0:
		return model.VMPaused
	case !c.GuestRuns():
		return starting
	}
	return model.VMRunning
}

// snapshot is the published status with what is read at the moment.
func (g *guard) snapshot() guardctl.Status {
	g.mu.Lock()
	s := g.status
	h := g.readVols
	since := g.badSince
	g.mu.Unlock()
	if h == nil {
		return s
	}
	now := g.clock.Now()
	if l := h.Lease(); l.Held {
		s.LeaseLeft = l.Deadline.Sub(now)
	}
	if since != 0 {
		s.PausedFor = now.Sub(since)
	}
	names := map[string]string{}
	for _, d := range g.cfg.Disks {
		names[d.Volume.String()] = d.Name
	}
	for _, v := range h.Status().Volumes {
		s.PausedFor = max(s.PausedFor, v.Stalled)
		s.Volumes = append(s.Volumes, guardctl.Volume{ID: v.Volume, Name: names[v.Volume.String()], Status: g.summary(v),
			IO: guardctl.IOStats{Reads: v.Reads, Writes: v.Writes, Flushes: v.Flushes, ReadBytes: v.ReadBytes, WrittenBytes: v.WriteBytes, Hedged: v.Hedged, HedgesWon: v.HedgesWon}})
	}
	return s
}

// summary is a volume's status as the API shows it.
func (g *guard) summary(v volume.VolumeStatus) model.VolumeStatus {
	out := v.Summary()
	out.Writer = g.cfg.NodeName + ", vm " + g.cfg.Name
	return out
}

// noteStep notes when a step of a start from power-on is over.
func (g *guard) noteStep(e vmguard.Event) {
	now := g.clock.Wall()
	if _, ok := e.(vmguard.Start); ok {
		g.steps = model.StartSteps{Guard: g.began}
		if g.core.Restarts() > 0 {
			g.steps.Guard = now
		}
		return
	}
	if g.steps.Guard.IsZero() {
		return
	}
	switch e := e.(type) {
	case vmguard.QEMUStarted:
		noteFirst(&g.steps.QEMU, now, e.Err == nil)
	case vmguard.Prepared:
		noteFirst(&g.steps.Granted, now, e.Ready)
	case vmguard.Taken:
		noteFirst(&g.steps.Taken, now, e.Err == nil && !e.Fenced)
	case vmguard.VCPUsResumed:
		noteFirst(&g.steps.Resumed, now, true)
	}
}

func noteFirst(at *time.Time, now time.Time, ok bool) {
	if ok && at.IsZero() {
		*at = now
	}
}
