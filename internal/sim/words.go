package sim

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"time"

	"roseau/internal/base/ids"
	"roseau/internal/block/writer"
	"roseau/internal/core/repl"
)

const extentBlocks = repl.ExtentBlocks

// scriptWords are the words of a script. docs/design/simulator.md has the list
// for people.
var scriptWords map[string]func(p *player, args []string) error

func init() {
	scriptWords = map[string]func(p *player, args []string) error{
		"slow-disks":  func(*player, []string) error { return nil }, // see scripted
		"promise":     (*player).promise,
		"reset":       (*player).reset,
		"lag":         (*player).lag,
		"end":         func(p *player, _ []string) error { p.over = true; return nil },
		"one-disk":    func(*player, []string) error { return nil },
		"min-isr-2":   func(*player, []string) error { return nil },
		"start":       (*player).start,
		"stop-vm":     (*player).stopVM,
		"write":       func(p *player, a []string) error { return p.request(writer.OpWrite, a) },
		"read":        func(p *player, a []string) error { return p.request(writer.OpRead, a) },
		"zero":        func(p *player, a []string) error { return p.request(writer.OpZero, a) },
		"discard":     func(p *player, a []string) error { return p.request(writer.OpDiscard, a) },
		"flush":       func(p *player, a []string) error { return p.request(writer.OpFlush, append([]string{"0.0"}, a...)) },
		"answered":    (*player).answered,
		"load":        (*player).load,
		"wait":        (*player).wait,
		"until":       (*player).until,
		"power":       (*player).power,
		"keep":        (*player).setKeep,
		"storage":     (*player).storage,
		"guard":       (*player).guardWord,
		"ghost":       (*player).ghost,
		"partition":   (*player).partition,
		"cut":         (*player).cut,
		"heal":        (*player).heal,
		"etcd":        (*player).etcd,
		"hang":        (*player).hang,
		"unhang":      (*player).unhang,
		"disk":        (*player).diskWord,
		"rot-log":     (*player).rotLog,
		"rot-image":   (*player).rotImage,
		"rot":         (*player).rot,
		"lost":        (*player).lost,
		"snapshot":    (*player).snapshot,
		"scrub":       (*player).scrub,
		"rollback":    (*player).rollback,
		"force":       (*player).force,
		"bmc":         (*player).bmc,
		"lie-sync":    (*player).lieSync,
		"maintain":    (*player).maintain,
		"clone":       func(*player, []string) error { return nil }, // see newClones
		"parent":      (*player).parent,
		"yield":       (*player).yield,
		"merges":      (*player).merges,
		"move":        (*player).move,
		"sweep":       (*player).sweep,
		"full":        (*player).full,
		"space":       (*player).space,
		"clock":       (*player).clockWord,
		"suspend":     (*player).suspend,
		"resume":      (*player).resume,
		"swap":        (*player).swap,
		"pace":        (*player).pace,
		"two-volumes": func(*player, []string) error { return nil }, // see tenantsWanted
		"vol2":        (*player).vol2,
		"wrap":        (*player).wrap,
		"steady":      (*player).steady,
		"delete":      (*player).deleteVolume,
	}
}

// start nX [nowait]: the manager starts the VM there under a new run.
func (p *player) start(a []string) error {
	n, err := p.node(a[0])
	if err != nil {
		return err
	}
	m := &p.t.manager
	p.endChallenge()
	if err := p.await("etcd", time.Minute, func() bool { return p.w.etcdReachable(n) && n.serving() }); err != nil {
		return err
	}
	m.challenge(n, p.t.drawID(), time.Hour)
	g := m.challenger
	if len(a) > 1 && a[1] == "nowait" {
		return nil
	}
	return p.await("service on "+n.name(), 2*time.Minute, func() bool {
		if g.ended() { // somebody else changed the records first: once more
			m.challenger = nil
			m.challenge(n, p.t.drawID(), time.Hour)
			g = m.challenger
		}
		return m.active == g && p.t.guest.guard == g
	})
}

// endChallenge takes back a start that has not come to anything.
func (p *player) endChallenge() {
	m := &p.t.manager
	if c := m.challenger; c != nil && !c.ended() {
		c.step(writer.Command{Kind: writer.Stop})
		c.done = true
		c.dropLinks()
	}
	m.challenger = nil
}

// stop-vm: the guest shuts down and the guard releases the volume.
func (p *player) stopVM(_ []string) error {
	g := p.t.manager.active
	g.step(writer.Command{Kind: writer.Release})
	err := p.await("the release", time.Minute, func() bool { return g.core.State() == writer.ReleasedState })
	p.t.guest.die()
	g.buried = true
	return err
}

// request BLOCK [COUNT] [fua] [async] [maybe DURATION].
func (p *player) request(op writer.Op, a []string) error {
	first, err := p.block(a[0])
	if err != nil {
		return err
	}
	count, fua, limit, must := 1, false, 2*time.Minute, true
	for i := 1; i < len(a); i++ {
		switch a[i] {
		case "fua":
			fua = true
		case "async":
			limit, must = 0, false
		case "maybe":
			i++
			must = false
			if limit, err = p.duration(a[i]); err != nil {
				return err
			}
		default:
			if count, err = strconv.Atoi(a[i]); err != nil {
				return err
			}
		}
	}
	m := p.t.guest
	if m.guard == nil || !m.alive {
		if must {
			return errors.New("no guest runs")
		}
		return nil
	}
	r := m.put(op, first, count, fua)
	done := func() bool { return m.pending[r.id] == nil }
	if !must {
		p.w.run(p.w.now.Add(limit), done)
		return nil
	}
	return p.await("the answer", limit, done)
}

// answered: every request of the guest has its answer.
func (p *player) answered(_ []string) error {
	return p.await("every answer", 2*time.Minute, func() bool { return len(p.t.guest.pending) == 0 })
}

// load on|off: the guest issues random requests of its own.
func (p *player) load(a []string) error {
	p.t.guest.retired = a[0] == "off"
	p.t.guest.issue()
	return nil
}

func (p *player) wait(a []string) error {
	d, err := p.duration(a[0])
	if err != nil {
		return err
	}
	return p.pass(d)
}

// until whole | out nX | in nX | joining nX | seen COUNTER | served nX | gone nX [maybe DURATION].
func (p *player) until(a []string) error {
	limit, must := 2*time.Minute, true
	if i := slices.Index(a, "maybe"); i >= 0 {
		d, err := p.duration(a[i+1])
		if err != nil {
			return err
		}
		limit, must, a = d, false, a[:i]
	}
	cond, err := p.condition(a)
	if err != nil {
		return err
	}
	if !must {
		p.w.run(p.w.now.Add(limit), cond)
		return nil
	}
	return p.await(a[0], limit, cond)
}

// promise CONDITION within D: what until waits for, and the contract promises in
// that time.
func (p *player) promise(a []string) error {
	i := slices.Index(a, "within")
	if i < 1 || i+2 != len(a) {
		return errors.New("want CONDITION within DURATION")
	}
	d, err := p.duration(a[i+1])
	if err != nil {
		return err
	}
	cond, err := p.condition(a[:i])
	if err != nil {
		return err
	}
	if !p.w.run(p.w.now.Add(d), cond) {
		p.w.failf("%v does not hold within %s: %s", a[:i], d, p.w.describe())
	}
	return nil
}

// lag D: every message takes so much longer.
func (p *player) lag(a []string) (err error) {
	p.w.profile.lag, err = p.duration(a[0])
	return err
}

// reset nX: the guard's connection to the node breaks; both are well.
func (p *player) reset(a []string) error {
	n, err := p.node(a[0])
	if err != nil {
		return err
	}
	if l := p.t.manager.active.links[n.index]; l != nil && l.open {
		l.reset(false)
	}
	return nil
}

func (p *player) condition(a []string) (func() bool, error) {
	w, t := p.w, p.t
	switch a[0] {
	case "whole":
		return t.whole, nil
	case "copies":
		want, err := strconv.Atoi(a[1])
		return func() bool { return t.copies() >= want }, err
	case "living": // copies on disks that are not dead
		want, err := strconv.Atoi(a[1])
		return func() bool { return t.livingCopies() >= want }, err
	case "answered":
		return func() bool { return len(t.guest.pending) == 0 }, nil
	case "merged":
		return func() bool { return t.copies() == storageNodes && !w.snaps.mergesLeft() }, nil
	case "freed":
		return w.freed, nil
	case "unmerged":
		return w.snaps.mergesLeft, nil
	case "moved":
		was := w.counts["segment_moved"]
		return func() bool { return w.counts["segment_moved"] > was }, nil
	case "seen":
		was := p.w.counts[a[1]]
		if len(a) > 2 { // ever
			was = 0
		}
		return func() bool { return w.counts[a[1]] > was }, nil
	}
	n, err := p.node(a[1])
	if err != nil {
		return nil, err
	}
	volume := t.volume
	if len(a) == 3 && a[2] == "parent" {
		volume = w.clones.parent
	}
	switch a[0] {
	case "window":
		return p.heldWindow(n, a[2:])
	case "tail":
		return p.tailMoved(n), nil
	case "foreign":
		return p.foreign(n), nil
	case "objects":
		return p.objects(n, a[2:])
	case "applying":
		return p.applying(n), nil
	case "checkpointed":
		return p.checkpointed(n), nil
	case "out":
		return func() bool { return p.outDisks(volume, n) == len(n.disks) }, nil
	case "in":
		return func() bool { return p.outDisks(volume, n) == 0 }, nil
	case "merging":
		return func() bool {
			return slices.ContainsFunc(n.disks, func(d *simDisk) bool { e := n.engines[d.id]; return e != nil && e.Merging(t.volume) })
		}, nil
	case "joining":
		return func() bool {
			g := t.manager.active
			for _, v := range g.core.Health().Volumes {
				for _, m := range v.Members {
					if m.Node == n.id && m.Syncing {
						return true
					}
				}
			}
			return false
		}, nil
	case "served":
		return func() bool {
			g := t.manager.active
			return g != nil && g.node == n && !g.ended() && t.guest.guard == g
		}, nil
	}
	return nil, fmt.Errorf("%q is no condition", a[0])
}

func (p *player) outDisks(volume ids.ID, n *node) int {
	v := p.w.etcd.records(p.t.vm, idsOf(volume), p.w.diskIdx).Volumes[0]
	out := 0
	for _, d := range n.disks {
		if _, is := v.Own.Out[d.id]; is {
			out++
		}
	}
	return out
}

// power off|on|blip nX...
func (p *player) power(a []string) error {
	list, err := p.nodes(a[1:])
	if err != nil {
		return err
	}
	for _, n := range list {
		switch a[0] {
		case "off", "blip":
			if n.powered {
				n.powerCut()
			}
			if a[0] == "blip" {
				p.w.after(p.w.between(10*time.Millisecond, 200*time.Millisecond), n.restore)
			}
		case "on":
			n.restore()
		default:
			return fmt.Errorf("%q: want off, on or blip", a[0])
		}
	}
	return nil
}

// keep nX P: how likely a sector that no fdatasync covers survives.
func (p *player) setKeep(a []string) error {
	n, err := p.node(a[0])
	if err != nil {
		return err
	}
	p.keep[n.index], err = strconv.ParseFloat(a[1], 64)
	return err
}

// survival is what losePower uses for a node.
func (w *world) survival(n *node) float64 {
	if w.player != nil {
		if k, ok := w.player.keep[n.index]; ok {
			return k
		}
	}
	return w.profile.tornLikely
}

// storage kill|start|restart nX...
func (p *player) storage(a []string) error {
	list, err := p.nodes(a[1:])
	if err != nil {
		return err
	}
	for _, n := range list {
		switch a[0] {
		case "kill":
			n.killStorage()
		case "start":
			n.startStorage()
		case "restart":
			n.killStorage()
			p.w.after(p.w.between(time.Millisecond, 20*time.Millisecond), n.startStorage)
		default:
			return fmt.Errorf("%q: want kill, start or restart", a[0])
		}
	}
	return nil
}

// guard kill | adopt | freeze nX | thaw nX | replace nX | accept.
func (p *player) guardWord(a []string) error {
	t := p.t
	g := t.manager.active
	if len(a) > 1 {
		n, err := p.node(a[1])
		if err != nil {
			return err
		}
		if a[0] == "replace" {
			t.manager.replaceDisksOf(n)
			return nil
		}
		if g = p.guardOn(n); g == nil {
			return fmt.Errorf("no guard ran on %s", n.name())
		}
	}
	switch a[0] {
	case "kill":
		g.kill()
		t.guest.paused = true
	case "adopt":
		t.manager.guardKilled(g, 0)
	case "freeze":
		g.freeze()
	case "thaw":
		g.thaw()
	case "accept":
		t.manager.accept(t.manager.challenger)
	default:
		return fmt.Errorf("%q is nothing that a guard does", a[0])
	}
	return nil
}

// ghost nX: a supervisor finds the QEMU of the last run on the node and starts a
// guard for it under the present placement.
func (p *player) ghost(a []string) error {
	n, err := p.node(a[0])
	if err != nil {
		return err
	}
	old := p.guardOn(n)
	if old == nil {
		return fmt.Errorf("no guard ran on %s", n.name())
	}
	m := &p.t.manager
	m.attempt++
	p.w.etcd.rev++
	p.w.etcd.put(repl.Key{Kind: repl.KeyPlacement, ID: p.t.vm}.Path(), repl.Placement{Node: n.id, Attempt: m.attempt, State: "starting", Run: p.t.drawID()})
	p.w.haunt(n, old)
	return nil
}

func (p *player) partition(a []string) error {
	list, err := p.nodes(a)
	for _, n := range list {
		for i := range p.w.nodes {
			p.w.net.set(n.index, i, i != n.index)
			p.w.net.set(i, n.index, i != n.index)
		}
		p.w.isolated(n)
	}
	return err
}

// cut nX>nY: nothing from X reaches Y.
func (p *player) cut(a []string) error {
	for _, word := range a {
		if len(word) != 5 || word[2] != '>' {
			return fmt.Errorf("%q: want nX>nY", word)
		}
		x, err := p.node(word[:2])
		if err != nil {
			return err
		}
		y, err := p.node(word[3:])
		if err != nil {
			return err
		}
		p.w.net.set(x.index, y.index, true)
	}
	return nil
}

func (p *player) heal(_ []string) error {
	for _, n := range p.w.nodes {
		p.w.heal(n)
	}
	return nil
}

// etcd apart | cut nX | down | up | slow DURATION | next lost|unanswered|late | backup | restore.
func (p *player) etcd(a []string) error {
	e := p.w.etcd
	switch a[0] {
	case "apart":
		e.apart = true
	case "down":
		e.up = false
	case "up":
		e.up, e.cutOff = true, nil
	case "cut":
		n, err := p.node(a[1])
		if err != nil {
			return err
		}
		e.cutOff = n
	case "slow":
		d, err := p.duration(a[1])
		if err != nil {
			return err
		}
		p.w.profile.etcdLo, p.w.profile.etcdHi = d, d+1
	case "next":
		e.next = a[1]
	case "backup":
		e.backup = cloneKeys(e.keys)
	case "restore":
		e.keys = cloneKeys(e.backup)
	default:
		return fmt.Errorf("%q is nothing that etcd does", a[0])
	}
	return nil
}

// hang nX [sync]: the disks of the node answer nothing, or no fdatasync.
func (p *player) hang(a []string) error {
	n, err := p.node(a[0])
	if err != nil {
		return err
	}
	for _, d := range n.disks {
		if len(a) > 1 && a[1] == "sync" {
			d.hangSync(p.w.now.Add(24 * time.Hour))
		} else {
			d.hang(p.w.now.Add(24 * time.Hour))
		}
	}
	return nil
}

func (p *player) unhang(a []string) error {
	list, err := p.nodes(a)
	for _, n := range list {
		for _, d := range n.disks {
			d.wake(p.w)
		}
	}
	return err
}

// disk die nX K: its K-th disk, from 0.
func (p *player) diskWord(a []string) error {
	n, err := p.node(a[1])
	if err != nil {
		return err
	}
	k, err := strconv.Atoi(a[2])
	if err != nil || k < 0 || k >= len(n.disks) || a[0] != "die" {
		return errors.New("want die NODE NUMBER")
	}
	p.w.killDisk(n, n.disks[k])
	return nil
}

// scrub DUTY: passes over all disks begin, and a comparison of the copies.
func (p *player) scrub(a []string) error {
	duty, err := strconv.Atoi(a[0])
	p.w.startScrub(duty)
	return err
}

// rot-log nX: a bit of what the log of each disk holds durably flips.
func (p *player) rotLog(a []string) error {
	n, err := p.node(a[0])
	if err != nil {
		return err
	}
	p.w.profile.rotNode = n.index
	if tail := len(a) > 1 && a[1] == "tail"; !p.w.rotLogs(n, tail) && tail {
		return errors.New("nothing was flushed that is not proved durable")
	}
	return nil
}

// rollback NUMBER [unseen]: the VM is stopped by force, and its volume is to be taken
// back to a snapshot; unseen: its guard goes on.
func (p *player) rollback(a []string) error {
	unseen := len(a) == 2 && a[1] == "unseen"
	if len(a) != 1 && !unseen {
		return errors.New("want the number of a snapshot, and unseen or nothing")
	}
	n, err := strconv.ParseUint(a[0], 10, 32)
	if err != nil {
		return err
	}
	s := p.w.snaps
	if s.exist[uint32(n)] == nil || !s.rollback(uint32(n), unseen) {
		return fmt.Errorf("snapshot %d does not exist, or etcd is away", n)
	}
	return nil
}

// rot nX B...: every page of the node's disks that holds a version of the block
// rots, in the log and in place; nothing of it is left in memory.
func (p *player) rot(a []string) error {
	n, err := p.node(a[0])
	if err != nil {
		return err
	}
	p.w.profile.rotNode = n.index
	for _, word := range a[1:] {
		block, err := p.block(word)
		if err != nil {
			return err
		}
		pages := 0
		for _, d := range n.disks {
			pages += d.rotBlock(block)
		}
		if pages == 0 {
			return fmt.Errorf("%s is on no disk of %s", word, n.name())
		}
		p.w.note("bit_rot")
	}
	n.killStorage()
	n.startStorage()
	return nil
}

// lost B: a read of the block ends with an error, as it must when no copy has it.
func (p *player) lost(a []string) error {
	block, err := p.block(a[0])
	if err != nil {
		return err
	}
	before := p.w.counts["io_error_of_last_copy"]
	r := p.t.guest.put(writer.OpRead, block, 1, false)
	if err := p.await("the answer", 2*time.Minute, func() bool { return p.t.guest.pending[r.id] == nil }); err != nil {
		return err
	}
	if p.w.counts["io_error_of_last_copy"] == before {
		p.w.failf("block %s is lost, and was read", a[0])
	}
	return nil
}
