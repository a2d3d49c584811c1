package ha

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"roseau/internal/base/clock"
	"roseau/internal/base/ids"
	"roseau/internal/core/place"
	"roseau/internal/core/repl"
	"roseau/internal/model"
)

// vm runs one VM through the function of its state and reports the result if it
// changed.
func (m *step) vm(vm VM) {
	mem, known := m.out.VMs[vm.ID]
	mem.Failures = slices.DeleteFunc(slices.Clone(mem.Failures), func(t clock.Instant) bool { return m.now.Sub(t) > m.p.Window })
	mem.Blame, mem.Sick = maps.Clone(mem.Blame), maps.Clone(mem.Sick)
	old := mem
	m.out.VMs[vm.ID] = mem
	var state model.VMState
	var reason string
	switch vm.Placement.State {
	case PlaceStarting:
		if vm.Placement.Run.IsZero() {
			state, reason = m.starting1(vm, &mem)
		} else {
			state, reason = m.recovering(vm, &mem)
		}
	case PlaceRunning:
		state, reason = m.running(vm, &mem)
	case PlaceMigrating:
		state, reason = m.migrating(vm, &mem)
	case PlaceStopping:
		state, reason = m.stopping(vm, &mem)
	default:
		switch {
		case !vm.Want:
			mem = VMMemory{Restarts: mem.Restarts, State: mem.State, Since: mem.Since}
			state, reason = model.VMStopped, ""
		case mem.Cause != "":
			state, reason = m.failed(vm, &mem)
		default:
			state, reason = m.stopped(vm, &mem)
		}
	}
	if state != old.State || !known {
		mem.Since = m.now
	}
	mem.State, mem.Reason = state, reason
	if !known || state != old.State || reason != old.Reason || mem.Restarts != old.Restarts {
		m.actions = append(m.actions, SetStatus{VM: vm.ID, Name: vm.Name, State: state, Node: m.where(vm), Reason: reason, Restarts: mem.Restarts})
	}
	m.out.VMs[vm.ID] = mem
}

// where is the name of the node that the newest decision gives the VM to.
func (m *step) where(vm VM) string {
	p := vm.Placement
	for i := len(m.actions) - 1; i >= 0; i-- {
		if a, ok := m.actions[i].(SetPlacement); ok && a.VM == vm.ID {
			p = a.Placement
			break
		}
	}
	return m.node[p.Node].Name
}

// report returns what the guard on node says, if it speaks of this attempt or a
// later one.
func report(vm VM, node ids.ID, attempt uint64) (Report, bool) {
	for _, r := range vm.Reports {
		if r.Node == node && (r.Attempt >= attempt || r.Phase == "absent") {
			return r, true
		}
	}
	return Report{}, false
}

// stopped: nobody runs it and it should run.
func (m *step) stopped(vm VM, mem *VMMemory) (model.VMState, string) {
	if m.now.Before(mem.NotUntil) {
		return model.VMStarting, fmt.Sprintf("tries again: %s", mem.Reason0())
	}
	// A run that an earlier attempt could not take over may live yet: then it is
	// left alone if its guard says so, and else this is still a recovery, which
	// leaves a live writer alone.
	lives, exclude := m.ownerLives(vm)
	if lives {
		return m.leaveAlone(vm, mem)
	}
	from := repl.Placement{Run: vm.Placement.Run}
	home, ok := m.home[vm.ID]
	if _, not := exclude[home.ID]; ok && !not {
		return m.startAtHome(vm, mem, from, home, exclude)
	}
	return m.start(vm, mem, from, "start", exclude)
}

// Reason0 is the last reason without the words that stopped puts before it.
func (mem *VMMemory) Reason0() string { return strings.TrimPrefix(mem.Reason, "tries again: ") }

// start chooses a node and places the VM there. from is the placement to leave,
// zero for a first start; its Run makes the attempt a recovery.
func (m *step) start(vm VM, mem *VMMemory, from repl.Placement, why string, exclude map[ids.ID]string) (model.VMState, string) {
	if m.view.Hold {
		return model.VMStopped, "the cluster shuts down"
	}
	if m.cold != "" {
		return model.VMStarting, m.cold
	}
	if ok, copyWhy := place.MissingCopy(vm.Volumes, m.candidates(vm)); !ok && len(vm.Volumes) > 0 {
		m.say(vm, mem, "warn", "waits: "+copyWhy)
		return model.VMWaitingForCopy, copyWhy
	}
	if why := m.held(vm, mem); why != "" {
		m.say(vm, mem, "info", why)
		return startState(from), why
	}
	if m.startAll >= m.p.StartsAll {
		return startState(from), fmt.Sprintf("waits: %d machines are starting in the cluster", m.startAll)
	}
	d, err := m.choose(vm, exclude)
	if err != nil {
		m.say(vm, mem, "warn", err.Error())
		if from.Run.IsZero() {
			return model.VMStopped, err.Error()
		}
		return model.VMRecovering, err.Error()
	}
	mem.Said = ""
	p := repl.Placement{Node: d.Node, Attempt: vm.Placement.Attempt + 1, State: PlaceStarting, Run: from.Run}
	m.setPlacement(vm, p, why+"; "+d.Why)
	if from.Run.IsZero() {
		return model.VMStarting, ""
	}
	return model.VMRecovering, why
}

// startState is what a VM does whose start has to wait.
func startState(from repl.Placement) model.VMState {
	if from.Run.IsZero() {
		return model.VMStarting
	}
	return model.VMRecovering
}

// say tells the same refusal only once.
func (m *step) say(vm VM, mem *VMMemory, level, text string) {
	if mem.Said != text {
		mem.Said = text
		m.event(level, "vm "+vm.Name, "%s", text)
	}
}

// starting1: a first start is under way; nobody ran it before.
func (m *step) starting1(vm VM, mem *VMMemory) (model.VMState, string) {
	p := vm.Placement
	if why := m.stopWhy(vm); why != "" {
		m.setPlacement(vm, repl.Placement{Node: p.Node, Attempt: p.Attempt, State: PlaceStopping, Run: p.Run}, why)
		return model.VMStopping, ""
	}
	n := m.node[p.Node]
	if why := m.gone(n); why != "" {
		return m.start(vm, mem, p, fmt.Sprintf("start again: %s %s", m.nodeName(p.Node), why), nil)
	}
	r, ok := report(vm, p.Node, p.Attempt)
	if !ok || r.Phase == "absent" {
		if mem.State == model.VMStarting && m.now.Sub(mem.Since) > m.p.StartLimit {
			return m.attemptFailed(vm, mem, orElse(r.Reason, "its guard did not appear"))
		}
		return model.VMStarting, ""
	}
	switch {
	case r.Phase == "failed" || r.Phase == "lost" || r.Phase == "moved":
		return m.attemptFailed(vm, mem, r.Reason)
	case r.Phase == "stopped":
		return m.guestStopped(vm, p, r)
	case r.WantsMove != "":
		return m.leave(vm, mem, r)
	case r.Waiting != "":
		m.say(vm, mem, "warn", "waits for "+r.Waiting)
		return model.VMWaitingForCopy, "waits for " + r.Waiting
	}
	return model.VMStarting, r.Reason
}

// gone returns why the node of a start is not coming back in time, or "".
func (m *step) gone(n Node) string {
	if n.ID.IsZero() {
		return "is no longer in the cluster"
	}
	if why := m.silent(n); why != "" {
		return "is lost: " + why
	}
	return ""
}

func (m *step) nodeName(id ids.ID) string {
	if n, ok := m.node[id]; ok {
		return n.Name
	}
	return "node " + id.Short()
}

// recovering: a VM that ran is being started elsewhere. The guard there asks the
// replicas until it may, or until it finds the old writer alive.
func (m *step) recovering(vm VM, mem *VMMemory) (model.VMState, string) {
	p := vm.Placement
	if why := m.stopWhy(vm); why != "" {
		m.setPlacement(vm, repl.Placement{Node: p.Node, Attempt: p.Attempt, State: PlaceStopping, Run: p.Run}, why)
		return model.VMStopping, ""
	}
	if why := m.gone(m.node[p.Node]); why != "" {
		lives, exclude := m.ownerLives(vm)
		if lives {
			return m.leaveAlone(vm, mem)
		}
		return m.start(vm, mem, p, fmt.Sprintf("recover again: %s %s", m.nodeName(p.Node), why), exclude)
	}
	r, ok := report(vm, p.Node, p.Attempt)
	if !ok || r.Phase == "absent" {
		if mem.State == model.VMRecovering && m.now.Sub(mem.Since) > m.p.StartLimit {
			return m.attemptFailed(vm, mem, orElse(r.Reason, "its guard did not appear"))
		}
		return model.VMRecovering, mem.Reason
	}
	switch {
	case r.Phase == "failed" || r.Phase == "lost" || r.Phase == "moved":
		return m.attemptFailed(vm, mem, r.Reason)
	case r.Phase == "stopped":
		return m.guestStopped(vm, p, r)
	case r.WantsMove != "":
		return m.leave(vm, mem, r)
	case r.Phase == "preparing" && r.Waiting != "":
		m.say(vm, mem, "warn", "waits for "+r.Waiting)
		return model.VMWaitingForCopy, "waits for " + r.Waiting
	case r.Phase == "preparing" && r.Live && m.now.Sub(r.Since) > m.p.PrepareLimit && !m.dying(m.node[vm.Owner]):
		return m.leaveAlone(vm, mem)
	}
	return model.VMRecovering, mem.Reason
}

// dying: n has just fallen silent, and a writer there may hold its leases yet. One
// that lives longer than a lease after the last beat does live.
func (m *step) dying(n Node) bool {
	return m.silent(n) != "" && m.now.Sub(n.LastBeat) <= m.p.PrepareLimit
}

// ownerLives reports whether the guard that holds the VM's volumes says that it
// runs, on another node than the VM is placed on, and that node can be believed. If
// it says so but cannot be, its node is excluded: a guard that may live is taken
// over from elsewhere or not at all.
func (m *step) ownerLives(vm VM) (lives bool, exclude map[ids.ID]string) {
	r, ok := report(vm, vm.Owner, 0)
	if !ok || vm.Owner.IsZero() || vm.Owner == vm.Placement.Node || r.Phase != "running" {
		return false, nil
	}
	n := m.node[vm.Owner]
	if r.Stalled == 0 && r.WantsMove == "" && !n.ID.IsZero() && m.usable(n) == "" {
		return true, nil
	}
	return false, map[ids.ID]string{vm.Owner: "its guard there may live"}
}

// leaveAlone takes back an attempt whose PREPARE met a live writer: the VM is
// fine where it is, and is asked again later.
func (m *step) leaveAlone(vm VM, mem *VMMemory) (model.VMState, string) {
	if vm.Owner.IsZero() || vm.Owner == vm.Placement.Node {
		// The live writer is not a VM's (a maintenance writer, an export): it
		// yields, or the guard goes on asking.
		return model.VMRecovering, "another writer holds its volumes"
	}
	mem.NotUntil = m.now.Add(min(m.p.ProbeAgain<<min(mem.Probes, 3), time.Minute))
	mem.Probes++
	mem.Heard = m.silent(m.node[vm.Owner]) == ""
	if mem.Counted == vm.Placement.Attempt && mem.Restarts > 0 {
		mem.Restarts, mem.Counted = mem.Restarts-1, 0 // nothing was restarted
	}
	owner := m.nodeName(vm.Owner)
	m.setPlacement(vm, repl.Placement{Node: vm.Owner, Attempt: vm.Placement.Attempt + 1, State: PlaceRunning, Run: vm.Placement.Run}, "its writer lives there")
	m.event("info", "vm "+vm.Name, "left alone: it runs on %s and its copies answer it; asked again in %s", owner, short(mem.NotUntil.Sub(m.now)))
	return model.VMRunning, "lives on " + owner + ", which the cluster does not hear well"
}

// attemptFailed counts a failure of the guard's and tries elsewhere, or gives up.
func (m *step) attemptFailed(vm VM, mem *VMMemory, why string) (model.VMState, string) {
	p := vm.Placement
	if why == "" {
		why = "its guard gave up without a reason"
	}
	mem.Failures = append(mem.Failures, m.now)
	if mem.Blame == nil {
		mem.Blame = map[ids.ID]string{}
	}
	mem.Blame[p.Node] = "failed there: " + why
	stopped := repl.Placement{Attempt: p.Attempt + 1, State: PlaceStopped, Run: p.Run}
	if len(mem.Failures) >= m.maxRestarts(vm) {
		mem.Cause, mem.World = why, m.world()
		m.setPlacement(vm, stopped, "failed "+fmt.Sprint(len(mem.Failures))+" times")
		m.event("error", "vm "+vm.Name, "failed %d times within %s, last on %s: %s", len(mem.Failures), short(m.p.Window), m.nodeName(p.Node), why)
		return model.VMFailed, m.failedText(vm, why)
	}
	back := time.Second << min(len(mem.Failures)-1, 5)
	mem.NotUntil = m.now.Add(back)
	m.setPlacement(vm, stopped, fmt.Sprintf("failed on %s: %s", m.nodeName(p.Node), why))
	m.event("warn", "vm "+vm.Name, "did not start on %s: %s; again in %s", m.nodeName(p.Node), why, short(back))
	return model.VMStarting, "tries again: " + why
}

// maxRestarts is how many failures make vm failed.
func (m *step) maxRestarts(vm VM) int {
	if vm.MaxRestarts > 0 {
		return vm.MaxRestarts
	}
	return m.p.MaxRestarts
}

func (m *step) failedText(vm VM, why string) string {
	return fmt.Sprintf("%s; when the cause has gone: `roseau vm stop %s`, `roseau vm start %s`", why, vm.Name, vm.Name)
}

// guestStopped: the guest powered itself off; it stays off.
func (m *step) guestStopped(vm VM, p repl.Placement, r Report) (model.VMState, string) {
	m.setPlacement(vm, repl.Placement{Attempt: p.Attempt + 1, State: PlaceStopped}, "powered off")
	if vm.Want {
		m.actions = append(m.actions, SetWant{VM: vm.ID, Name: vm.Name, Running: false})
		m.event("info", "vm "+vm.Name, "powered itself off on %s", m.nodeName(r.Node))
	}
	return model.VMStopped, ""
}

// running: it runs where it is placed, unless a hint says otherwise.
func (m *step) running(vm VM, mem *VMMemory) (model.VMState, string) {
	p := vm.Placement
	r, ok := report(vm, p.Node, 0)
	if why := m.stopWhy(vm); why != "" {
		m.setPlacement(vm, repl.Placement{Node: p.Node, Attempt: p.Attempt, State: PlaceStopping, Run: p.Run}, why)
		return model.VMStopping, ""
	}
	if ok && r.Phase == "stopped" && r.Attempt >= p.Attempt {
		return m.guestStopped(vm, p, r)
	}
	why, onlySession := m.hint(vm, mem, r, ok)
	switch {
	case why == "" && ok && r.Phase == "running" && m.silent(m.node[p.Node]) == "":
		m.settle(p, mem)
		if p.Stay { // it does not ask any more
			p.Stay = false
			m.setPlacement(vm, p, "its storage link works again, or it goes on with one copy")
		}
		return m.maintain(vm, mem, r)
	case why == "":
		return model.VMRunning, ""
	case m.now.Before(mem.NotUntil) && !(mem.Heard && m.silent(m.node[p.Node]) != ""): // silent now: another reason
		return model.VMRunning, "lives on " + m.nodeName(p.Node) + ", which the cluster does not hear well"
	case vm.HA == model.HAOff:
		return m.startAgain(vm, mem, why)
	}
	if !fellOver(p, r, ok) {
		return m.recover(vm, mem, why, onlySession)
	}
	if len(mem.Failures)+1 >= m.maxRestarts(vm) {
		return m.attemptFailed(vm, mem, why)
	}
	placed := len(m.actions)
	state, reason := m.recover(vm, mem, why, false)
	if m.wasPlaced(vm, placed) {
		mem.Failures = append(mem.Failures, m.now)
	}
	return state, reason
}

// fellOver reports whether the VM's own guard ended with an error on its node.
func fellOver(p repl.Placement, r Report, reported bool) bool {
	return reported && (r.Phase == "failed" || r.Phase == "lost") && r.Attempt >= p.Attempt
}

// wasPlaced reports whether the actions from the given one on place vm.
func (m *step) wasPlaced(vm VM, from int) bool {
	return slices.ContainsFunc(m.actions[from:], func(a Action) bool { s, ok := a.(SetPlacement); return ok && s.VM == vm.ID })
}

// settle forgets what was held against nodes, once the VM runs well.
func (m *step) settle(p repl.Placement, mem *VMMemory) {
	if !m.node[p.Node].Session {
		return
	}
	mem.Blame, mem.Sick, mem.Said, mem.HeldSince = nil, nil, "", 0
	if mem.NotUntil <= m.now {
		mem.Probes = 0
	}
}

// runningState translates a healthy report.
func (m *step) runningState(r Report) (model.VMState, string) {
	switch r.State {
	case model.VMPaused:
		return model.VMPaused, r.Reason
	case model.VMPausedLease:
		return m.pausedLease(r)
	}
	return model.VMRunning, r.Reason
}

// pausedLease: stalled, but not for long enough, or etcd is settling: a hint may
// still come of it.
func (m *step) pausedLease(r Report) (model.VMState, string) {
	if m.now.Sub(m.view.LeaderSince) < m.p.LeaderSettle {
		return model.VMPausedLease, "etcd has just elected a leader"
	}
	return model.VMPausedLease, r.Reason
}

// recover places a VM that ran elsewhere, if it can.
func (m *step) recover(vm VM, mem *VMMemory, why string, onlySession bool) (model.VMState, string) {
	p := vm.Placement
	exclude := map[ids.ID]string{}
	if r, ok := report(vm, p.Node, 0); ok && r.WantsMove != "" && m.silent(m.node[p.Node]) == "" {
		return m.leave(vm, mem, r)
	} else if onlySession || ok && r.Phase == "running" {
		exclude[p.Node] = why // it lives there or cannot go on there: elsewhere or not at all
	} else {
		mem.Blame = map[ids.ID]string{p.Node: why}
		if m.bootedAnew(vm, r, ok) {
			mem.Blame, exclude = nil, m.allBut(p.Node)
		}
	}
	run := p.Run
	if run.IsZero() {
		run = ids.ID{15: 1} // an attempt without a run known: still a recovery
	}
	before := len(m.actions)
	state, reason := m.start(vm, mem, repl.Placement{Run: run}, why, exclude)
	if m.wasPlaced(vm, before) && mem.Counted != p.Attempt+1 {
		mem.Restarts++
		mem.Counted = p.Attempt + 1
		m.event("warn", "vm "+vm.Name, "recovers from %s: %s", m.nodeName(p.Node), why)
	}
	return state, reason
}

// leave places a VM whose guard asks to be moved, for it reaches no copy but one
// of living nodes [S13], on a node that it has not asked to leave yet. If none can
// take it, its writer is told to stay: it goes on with the one copy.
func (m *step) leave(vm VM, mem *VMMemory, r Report) (model.VMState, string) {
	p := vm.Placement
	state := model.VMRecovering
	if p.State == PlaceRunning {
		state = model.VMPausedLease
	}
	if p.Stay {
		return state, "stays on " + m.nodeName(p.Node) + " with one copy: " + r.WantsMove
	}
	if mem.Sick == nil {
		mem.Sick = map[ids.ID]string{}
	}
	mem.Sick[p.Node] = "its storage link is sick"
	d, err := m.choose(vm, mem.Sick)
	if err != nil {
		stay := p
		stay.Stay = true
		m.setPlacement(vm, stay, "no other node can take it: "+err.Error())
		m.event("warn", "vm "+vm.Name, "stays on %s although %s; no other node can take it: %v", m.nodeName(p.Node), r.WantsMove, err)
		return state, r.WantsMove
	}
	run := p.Run
	if run.IsZero() {
		run = ids.ID{15: 1}
	}
	mem.Restarts++
	why := fmt.Sprintf("asks to leave %s: %s", m.nodeName(p.Node), r.WantsMove)
	m.setPlacement(vm, repl.Placement{Node: d.Node, Attempt: p.Attempt + 1, State: PlaceStarting, Run: run}, why+"; "+d.Why)
	m.event("warn", "vm "+vm.Name, "recovers from %s: %s", m.nodeName(p.Node), why)
	return model.VMRecovering, why
}

// hint returns why a recovery of a running VM should begin, or "".
func (m *step) hint(vm VM, mem *VMMemory, r Report, reported bool) (why string, onlySession bool) {
	p := vm.Placement
	n, ok := m.node[p.Node]
	if !ok {
		return fmt.Sprintf("%s is no longer in the cluster", m.nodeName(p.Node)), false
	}
	if s := m.silent(n); s != "" {
		return fmt.Sprintf("%s is lost: %s", n.Name, s), false
	}
	if !n.Session {
		return m.sessionHint(vm, mem, n)
	}
	if !reported {
		return "", false
	}
	switch stalled := r.Stalled + m.now.Sub(r.Seen); {
	case r.Phase == "absent" && m.now.Sub(r.Since) > m.p.GuardAbsent:
		return fmt.Sprintf("its guard has been absent on %s for more than %s", n.Name, short(m.p.GuardAbsent)), false
	case (r.Phase == "failed" || r.Phase == "lost") && r.Attempt >= p.Attempt:
		return fmt.Sprintf("its guard on %s ended: %s", n.Name, r.Reason), false
	case r.WantsMove != "":
		return fmt.Sprintf("asks to leave %s: %s", n.Name, r.WantsMove), false
	case r.Stalled > 0 && stalled > m.p.Stall && m.now.Sub(m.view.LeaderSince) >= m.p.LeaderSettle:
		return fmt.Sprintf("stalled on %s for more than %s", n.Name, short(m.p.Stall)), false
	}
	return "", false
}

// sessionHint judges a lost session while beats go on: the node lives, so its
// guards probably do. What a beat says of the guard decides; without that, a
// PREPARE after a grace time.
func (m *step) sessionHint(vm VM, mem *VMMemory, n Node) (string, bool) {
	if vm.ToldAlive != 0 && m.now.Sub(vm.ToldAlive) <= m.p.BeatLoss {
		m.say(vm, mem, "info", fmt.Sprintf("the session of %s is lost, but its guard holds every lease: left alone", n.Name))
		return "", false
	}
	if n.SessionLost == 0 || m.now.Sub(n.SessionLost) < m.p.SessionGrace {
		return "", false
	}
	return fmt.Sprintf("the session of %s has been lost for more than %s", n.Name, short(m.p.SessionGrace)), true
}

// migrating: source and destination settle it between themselves by one CAS; the
// manager steps in when the source's node is lost or the migration is over.
func (m *step) migrating(vm VM, mem *VMMemory) (model.VMState, string) {
	p := vm.Placement
	src, srcOK := report(vm, p.Node, 0)
	dst, dstOK := report(vm, p.Target, 0)
	back := repl.Placement{Node: p.Node, Attempt: p.Attempt + 1, State: PlaceRunning, Run: p.Run}
	why := m.gone(m.node[p.Node])
	switch {
	case why != "":
		why = m.nodeName(p.Node) + " " + why
		if vm.HA == model.HAOff {
			m.say(vm, mem, "warn", why+"; not restarted: its HA is off")
			return model.VMFailed, why + "; not restarted: its HA is off"
		}
		return m.recover(vm, mem, why+" while migrating to "+m.nodeName(p.Target), false)
	case srcOK && src.Phase == "stopped":
		return m.guestStopped(vm, p, src)
	case srcOK && src.MigrationOver != 0 && src.MigrationOver >= p.Attempt:
		m.setPlacement(vm, back, "the migration ended without moving it")
		m.event("warn", "vm "+vm.Name, "stays on %s: %s", m.nodeName(p.Node), orElse(src.MigrationError, "the migration ended"))
		return model.VMRunning, ""
	case dstOK && dst.Phase == "failed" && dst.Attempt >= p.Attempt:
		m.setPlacement(vm, back, "the destination failed")
		m.event("warn", "vm "+vm.Name, "stays on %s: %s failed: %s", m.nodeName(p.Node), m.nodeName(p.Target), dst.Reason)
		return model.VMRunning, ""
	case m.gone(m.node[p.Target]) != "" && !(srcOK && src.Phase == "moved"):
		m.setPlacement(vm, back, m.nodeName(p.Target)+" "+m.gone(m.node[p.Target]))
		m.event("warn", "vm "+vm.Name, "stays on %s: %s %s", m.nodeName(p.Node), m.nodeName(p.Target), m.gone(m.node[p.Target]))
		return model.VMRunning, ""
	case (!dstOK || dst.Phase == "absent") && mem.State == model.VMMigrating && m.now.Sub(mem.Since) > m.p.MigrateStart:
		m.setPlacement(vm, back, "the destination did not answer")
		m.event("warn", "vm "+vm.Name, "stays on %s: the guard on %s did not appear: %s", m.nodeName(p.Node), m.nodeName(p.Target), orElse(dst.Reason, "no report"))
		return model.VMRunning, ""
	}
	return model.VMMigrating, "to " + m.nodeName(p.Target)
}

func orElse(s, other string) string {
	if s == "" {
		return other
	}
	return s
}

// stopping: the guard drains and releases; a lost node needs no more.
func (m *step) stopping(vm VM, mem *VMMemory) (model.VMState, string) {
	p := vm.Placement
	done := repl.Placement{Attempt: p.Attempt + 1, State: PlaceStopped}
	r, ok := report(vm, p.Node, 0)
	switch {
	case m.gone(m.node[p.Node]) != "":
		m.setPlacement(vm, done, m.nodeName(p.Node)+" "+m.gone(m.node[p.Node]))
		return model.VMStopped, ""
	case ok && (r.Phase == "stopped" || r.Phase == "failed" || r.Phase == "lost"):
		m.setPlacement(vm, done, "stopped")
		return model.VMStopped, ""
	case ok && r.Phase == "absent" && m.now.Sub(r.Since) > time.Second:
		m.setPlacement(vm, done, "no guard there")
		return model.VMStopped, ""
	}
	return model.VMStopping, ""
}

// failed: too many attempts. It heals when the cluster looks different from when
// it failed, or after a long time.
func (m *step) failed(vm VM, mem *VMMemory) (model.VMState, string) {
	w := m.world()
	if w == mem.World && m.now.Sub(mem.Since) < m.p.HealAfter {
		return model.VMFailed, mem.Reason
	}
	if w == mem.World {
		m.event("info", "vm "+vm.Name, "is tried again, %s after it failed", short(m.p.HealAfter))
	} else {
		m.event("info", "vm "+vm.Name, "is tried again: the cluster has changed since it failed")
	}
	mem.Cause, mem.World, mem.Failures, mem.Blame, mem.NotUntil = "", "", nil, nil, 0
	return m.stopped(vm, mem)
}
