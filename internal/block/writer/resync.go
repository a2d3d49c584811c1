package writer

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	"roseau/internal/base/clock"
	"roseau/internal/block/wire"
	"roseau/internal/core/repl"
)

// syncPhase is how far a joining disk is.
type syncPhase uint8

const (
	syncOpen   syncPhase = iota // OPEN: the disk tells its marks
	syncBegin                   // SYNC_BEGIN sent: it gets every new write from here on
	syncDrain                   // until the writes begun before are committed at the sources
	syncList                    // what is newer than BASE, on either side
	syncCopy                    // object by object
	syncEnd                     // everything durable
	syncCount                   // grow 1: its answers count; CONFIG{pending} durable
	syncFlush                   // grow 2: the barrier
	syncCommit                  // grow 3: the CAS
)

// syncJob brings a disk that is out back into the in-sync set [S4].
type syncJob struct {
	m        *member
	phase    syncPhase
	base     repl.Mark
	began    clock.Instant // the copying
	joinWseq uint64
	lists    int
	src      []*member // per segment: whose list counts, but for relists
	relists  map[uint64]*relist
	second   bool // the lists awaited, or last taken, are those of relists
	objects  []syncObject
	next     int
	done     uint64
	bytes    uint64
	running  int // objects under way
	barrier  uint64
	flushing bool
	flushed  bool
	ready    bool          // complete; waits until step 1 of grow may begin
	orphan   bool          // a source went away with a question: begin again
	lost     bool          // a source went away: chunks that wait must be read elsewhere
	ops      []*op         // chunks that hold or wait for their range
	waiting  []int         // objects that wait for the pace
	again    clock.Instant // when they may go on
}

// syncObject is one extent of one object that may differ.
type syncObject struct {
	ext      uint64
	object   uint32
	prio     int
	mark     repl.Mark // the source's
	tomb     bool
	atSource bool

	src    *member
	have   []wire.Tag // the joining disk's
	had    repl.Mark  // of the extent there; after something was sent, the source's
	want   []wire.Tag // the source's
	asked  int
	block  int // next to be looked at
	unsent int // chunks unanswered
}

// unreadableWait is how long a join waits that met a block which no source can
// read that answers, while an in-sync copy does not answer.
const unreadableWait = 10 * time.Second

// syncBeside is how many objects are copied at a time while the guest writes.
const syncBeside = 4

// chunkBlocks is 128 KiB: how much is read from the source under the lock.
const chunkBlocks = 32

// syncAsk is the kind of a slotSync, in slot.arg's low byte; the object's index
// is above it.
const (
	askBegin = iota
	askList
	askListOwn
	askTags
	askTagsOwn
	askWrite
	askEnd
)

func (v *volume) joining() bool {
	for _, m := range v.members {
		if m.sync != nil {
			return true
		}
	}
	return false
}

// settleSync starts the joins that are due and moves them on.
func (v *volume) settleSync() {
	c := v.c
	if c.state != Serving && c.state != Stalled {
		return
	}
	for _, m := range v.members {
		if m.sync != nil {
			m.sync.settle()
			continue
		}
		if !v.mayJoin(m) {
			continue
		}
		m.sync = &syncJob{m: m}
		c.report(ReportHealth, v.id, m.disk, "joining")
		// Open again: fresh marks, and a fresh set of live writes. One that is in
		// sync for other segments takes up its session at once.
		m.reopen()
		c.wake = true
	}
}

// opened: the joining disk has answered OPEN.
func (j *syncJob) opened() {
	m := j.m
	v := m.v
	if j.phase != syncOpen {
		j.fail("opened again")
		return
	}
	j.base = v.rec.Own.Out[m.disk].Base
	if m.ack.DurableMark.Less(j.base) || v.c.mut.ResyncFromOwnMark {
		j.base = m.ack.DurableMark
	}
	if m.ack.Damaged {
		j.base = repl.Mark{}
	}
	j.phase = syncBegin
	m.live = true
	if !m.counted {
		m.highAcked, m.flushed = 0, 0
	}
	j.joinWseq = v.wseq
	m.dropPlaces()
	v.c.send(m.node, &wire.SyncBegin{ReqID: j.slot(m, askBegin, 0), Handle: m.handle, Partial: v.isPartial(m)})
	j.giveRefused()
}

func (j *syncJob) slot(m *member, ask int, object int) uint64 {
	c := j.m.v.c
	id := c.newSlot(slotSync, m, nil, uint64(object)<<8|uint64(ask))
	c.slots[uint32(id)].job = j
	return id
}

// abortSync ends the join of m, if one is under way and does not count yet.
func (m *member) abortSync(why string) {
	j := m.sync
	if j == nil {
		return
	}
	v := m.v
	m.sync = nil
	v.dropSyncOps(j)
	v.c.forgetSync(j)
	if v.isPartial(m) {
		v.releaseFill(m)
		m.rejoinAt = max(m.rejoinAt, v.c.now.Add(v.c.t.OpenRetry))
	} else if !m.counted {
		v.release(m)
		m.open, m.resumed = closed, false
		m.rejoinAt = v.c.now.Add(v.c.t.OpenRetry)
	}
	v.c.report(ReportHealth, v.id, m.disk, "joining ended: "+why)
}

// forgetSync drops the unanswered questions of a job, to any member.
func (c *Core) forgetSync(j *syncJob) {
	for i := range c.slots {
		s := &c.slots[i]
		if s.kind == slotSync && s.job == j {
			c.dropSlot(uint32(i))
		}
	}
}

// dropSyncOps gives back the ranges that the job holds or waits for.
func (v *volume) dropSyncOps(j *syncJob) {
	c := v.c
	for i := range c.slots {
		if s := c.slots[i]; s.kind == slotRead && s.op.job == j {
			c.dropSlot(uint32(i))
		}
	}
	for _, o := range j.ops {
		if o.state == opQueued {
			v.extents[o.ext].waiting--
		}
		v.unlock(o)
		c.recycle(o)
	}
	j.ops = nil
}

func (j *syncJob) fail(why string) {
	m := j.m
	if j.phase >= syncCount {
		m.v.cancelGrow(m)
		return
	}
	m.abortSync(why)
}

// cancelGrow takes back step 1 of a grow whose CAS was never sent: CONFIG
// without pending is made durable before the disk's answers stop counting. Once it
// was sent nothing is taken back before its outcome is known: a successor without
// etcd finds the disk by CONFIG alone, and etcd may have it in sync.
//
// A disk that is in sync for other segments stays so; for what it was being
// given nobody ever took it for a copy, so nothing has to be made durable first.
func (v *volume) cancelGrow(m *member) {
	if v.change != nil && v.change.kind == changeGrow && !v.c.mut.TakeSentGrowBack {
		return
	}
	if v.isPartial(m) {
		v.pending = nil
		v.config.serial++
		m.abortSync("failed while it was counted")
		return
	}
	v.pending = nil
	v.config.serial++
	if m.leaving == "" {
		m.leaving = repl.OutLost
	}
	m.abortSync("failed while it was counted")
	m.rejoinAt = v.c.now.Add(v.c.t.OpenRetry)
	v.dirty, v.c.wake = true, true
}

func (j *syncJob) settle() {
	m := j.m
	v := m.v
	if j.orphan && j.phase < syncCount {
		j.fail("a source is gone")
		return
	}
	if j.lost {
		j.rereadLost()
	}
	if m.failed || m.newRun && j.phase != syncOpen {
		j.fail("its storage failed or restarted")
		return
	}
	switch j.phase {
	case syncDrain:
		if j.drained() {
			j.list()
		}
	case syncCopy:
		j.resumeWaiting()
		j.pump()
	case syncEnd:
		if j.ready {
			j.count()
		}
	case syncCount:
		if v.told() && v.change == nil && v.frozenSince == 0 {
			j.phase = syncFlush
			j.barrier = v.wseq
		}
	case syncFlush:
		j.settleBarrier()
	case syncCommit:
		if v.change == nil && v.frozenSince == 0 {
			txn, next, err := repl.Grow(v.rec, m.disk)
			if err != nil {
				j.fail(err.Error())
				return
			}
			v.commitChange(&change{kind: changeGrow, txn: txn, next: next, members: []*member{m}})
		}
	}
}

// list asks the sources and the joining disk for what is newer than BASE.
// Every segment of the disk needs a source: without one nothing would look stale.
func (j *syncJob) list() {
	m := j.m
	v := m.v
	src := make([]*member, len(v.segs))
	for i := range v.segs {
		if !v.segs[i].wants(m) {
			continue
		}
		if src[i] = v.source(&v.segs[i], nil); src[i] == nil {
			return // looked at again at the next settle
		}
	}
	j.phase, j.src = syncList, src
	from := j.base
	if v.snap.seq > 0 && !v.c.mut.RawListFromBase {
		from = repl.Mark{} // see listed
	}
	for _, s := range v.members {
		if slices.Contains(src, s) {
			v.c.send(s.node, &wire.ExtListReq{ReqID: j.slot(s, askList, 0), Handle: s.handle, From: from})
			j.lists++
		}
	}
	v.c.send(m.node, &wire.ExtListReq{ReqID: j.slot(m, askListOwn, 0), Handle: m.handle, From: from})
	j.lists++
}

// addList notes the objects of one list that lie in segments of the joining disk.
func (j *syncJob) addList(from *member, es []wire.ExtEntry, own bool) {
	v := j.m.v
	for i := range es {
		e := &es[i]
		k := int64(e.Extent) * repl.ExtentBytes / v.c.cfg.SegmentBytes
		if k >= int64(len(v.segs)) || !v.segs[k].wants(j.m) {
			continue
		}
		if !j.counts(e.Extent, k, from, own) {
			continue
		}
		j.objects = append(j.objects, syncObject{
			ext: e.Extent, object: e.Object, prio: v.segs[k].rest(), mark: e.Mark, tomb: e.Tombstone && !own, atSource: !own,
		})
	}
}

// listed: both sides' lists are known. One entry an object; the source's wins.
//
// Copies merge objects by themselves, so their tables of one extent may differ
// and yet read the same: an extent is compared as a whole, with all its objects on
// both sides, if one of them is above BASE on either.
func (j *syncJob) listed() {
	stale := make(map[uint64]bool)
	for i := range j.objects {
		if o := &j.objects[i]; j.base.Less(o.mark) {
			stale[o.ext] = true
		}
	}
	for _, r := range j.relists { // order does not show
		r.asked = false
	}
	news := j.objects[j.next:] // of a second list all are stale
	if !j.second {
		news = slices.DeleteFunc(news, func(o syncObject) bool { return !stale[o.ext] })
		j.began = j.m.v.c.now
	}
	slices.SortStableFunc(news, func(a, b syncObject) int {
		src := func(o syncObject) int {
			if o.atSource {
				return 0
			}
			return 1
		}
		return cmp.Or(cmp.Compare(a.prio, b.prio), cmp.Compare(a.ext, b.ext), cmp.Compare(a.object, b.object), cmp.Compare(src(a), src(b)))
	})
	news = slices.CompactFunc(news, func(a, b syncObject) bool { return a.ext == b.ext && a.object == b.object })
	j.objects = append(j.objects[:j.next], news...)
	j.phase = syncCopy
	j.pump()
}

// window is how many objects may be under way: beside a guest that writes, few.
func (j *syncJob) window() int {
	c := j.m.v.c
	if c.pace.idle(c.now) {
		return c.t.SyncWindow
	}
	return min(c.t.SyncWindow, syncBeside)
}

func (j *syncJob) pump() {
	v := j.m.v
	for window := j.window(); j.running < window && j.next < len(j.objects); {
		i := j.next
		j.next++
		j.running++
		j.beginObject(i)
	}
	if j.next == len(j.objects) && j.running == 0 && j.phase == syncCopy && !j.listAgain() {
		j.phase = syncEnd
		if v.isPartial(j.m) {
			// SYNC_END makes a copy warm and whole: that is for one that was out. The
			// barrier of the grow makes the data durable.
			j.count()
			return
		}
		v.c.send(j.m.node, &wire.SyncEnd{ReqID: j.slot(j.m, askEnd, 0), Handle: j.m.handle})
	}
}

// beginObject asks both sides for the tags of an object.
func (j *syncJob) beginObject(i int) {
	o := &j.objects[i]
	m := j.m
	v := m.v
	if j.relisting(o.ext) {
		j.endObject(i)
		return
	}
	o.src = v.source(v.segment(o.ext), nil)
	if j.bound() {
		o.src = j.listSource(o.ext)
	}
	if o.src == nil {
		j.fail("no source")
		return
	}
	o.asked, o.block, o.have, o.want = 2, 0, nil, nil
	v.c.send(o.src.node, &wire.ExtTagsReq{ReqID: j.slot(o.src, askTags, i), Handle: o.src.handle, Extent: o.ext, Object: o.object})
	v.c.send(m.node, &wire.ExtTagsReq{ReqID: j.slot(m, askTagsOwn, i), Handle: m.handle, Extent: o.ext, Object: o.object})
}

func (v *volume) segment(ext uint64) *segment {
	return &v.segs[int64(ext)*repl.ExtentBytes/v.c.cfg.SegmentBytes]
}

// copyObject sends what differs, chunk by chunk; tags that are equal at
// different times are the same write, and anything newer comes live.
func (j *syncJob) copyObject(i int) {
	o := &j.objects[i]
	m := j.m
	v := m.v
	if j.relisting(o.ext) {
		if o.unsent == 0 {
			j.endObject(i)
		}
		return
	}
	if len(o.want) == 0 && len(o.have) == 0 && !o.had.Less(o.mark) {
		j.endObject(i)
		return
	}
	if len(o.want) == 0 { // discarded, or never written, at the source
		o.unsent++
		v.c.send(m.node, &wire.SyncWrite{
			ReqID: j.slot(m, askWrite, i), Handle: m.handle, Extent: o.ext, Object: o.object, Mark: o.mark, Tombstone: true,
		})
		o.block, o.have, o.had = repl.ExtentBlocks, nil, o.mark
		return
	}
	if o.block < repl.ExtentBlocks && !j.mayCopy(i) {
		return
	}
	for o.block < repl.ExtentBlocks {
		first := o.block
		last := -1
		for b := first; b < min(first+chunkBlocks, len(o.want)); b++ {
			if len(o.have) <= b && o.want[b] != (wire.Tag{}) || len(o.have) > b && o.have[b] != o.want[b] {
				if last < 0 {
					first = b
				}
				last = b
			}
		}
		o.block = min(o.block+chunkBlocks, repl.ExtentBlocks)
		if last < 0 {
			continue
		}
		v.c.pace.sent(v.c.now, int64(last-first+1)*repl.BlockBytes)
		p := v.c.newOp(opSync, v, int64(o.ext), first, last-first+1)
		p.job, p.arg = j, i
		j.ops = append(j.ops, p)
		o.unsent++
		o.had = o.mark
		if v.c.mut.NoSyncLock {
			p.block, p.count = first, 0 // conflicts with nothing
			p.unlocked = last - first + 1
		}
		v.lock(p)
		return
	}
	if o.unsent == 0 && !j.sendMark(i) {
		j.endObject(i)
	}
}

func (j *syncJob) endObject(i int) {
	j.objects[i].have, j.objects[i].want = nil, nil
	j.running--
	j.done++
	j.m.v.c.wake = true
	j.m.v.dirty = true
}

// sourceRead sends a chunk to the joining disk, and only then lets go of the
// range: a newer write then follows it on the same connection (I10).
func (j *syncJob) sourceRead(p *op, from *member, a *wire.ReadReply) {
	v := j.m.v
	i := p.arg
	o := &j.objects[i]
	n := p.count
	if p.unlocked > 0 {
		n = p.unlocked
	}
	if p.rep != nil && j.bound() && a.Status == wire.OK && len(a.Tags) == 0 {
		a = &wire.ReadReply{Tags: make([]wire.Tag, n), Marks: []repl.Mark{{}}} // it has no such object: nothing can stand in
	}
	if a.Status != wire.OK && a.Status != wire.Unreadable || len(a.Tags) != n || len(a.Marks) == 0 || a.Data != nil && len(a.Data) != n*repl.BlockBytes {
		j.fail(fmt.Sprintf("a source cannot be read: status %d", a.Status))
		return
	}
	if a.Status == wire.Unreadable || p.rep != nil {
		if a = j.collect(p, from, n, a); a == nil {
			return
		}
	}
	w := &wire.SyncWrite{Handle: j.m.handle, Extent: o.ext, Object: o.object, Mark: a.Marks[0]}
	for b := range a.Tags {
		w.Blocks = append(w.Blocks, wire.SyncBlock{Block: uint16(p.block + b), Tag: a.Tags[b]})
		if !a.Tags[b].HasData() {
			continue
		}
		if a.Data == nil {
			w.Data = append(w.Data, make([]byte, repl.BlockBytes)...)
		} else {
			w.Data = append(w.Data, a.Data[b*repl.BlockBytes:(b+1)*repl.BlockBytes]...)
		}
	}
	j.bytes += uint64(len(w.Data))
	w.ReqID = j.slot(j.m, askWrite, i)
	v.c.send(j.m.node, w)
	j.ops = slices.DeleteFunc(j.ops, func(x *op) bool { return x == p })
	v.unlock(p)
	v.c.recycle(p)
}

// syncAnswer takes an answer to a question of a job.
func (c *Core) syncAnswer(n *node, id uint64, msg wire.Message) {
	s, ok := c.peekSlot(n, id, slotSync)
	if !ok {
		return
	}
	v := s.m.v
	j := s.job
	if j.m.sync != j {
		j = nil
	}
	if l, ok := msg.(*wire.ExtList); !ok || l.Last || l.Status != wire.OK {
		c.dropSlot(uint32(id))
	}
	v.dirty, c.wake = true, true
	if j == nil {
		return
	}
	j.answer(s, int(s.arg&0xff), int(s.arg>>8), msg)
}

func (j *syncJob) answer(s slot, ask, i int, msg wire.Message) {
	st := wire.BadRequest
	switch a := msg.(type) {
	case *wire.SimpleAck:
		st = a.Status
		if st == wire.OK && ask == askBegin {
			j.phase = syncDrain
		}
		if st == wire.OK && ask == askEnd {
			j.count()
		}
	case *wire.ExtList:
		st = a.Status
		if st == wire.OK {
			j.addList(s.m, a.Entries, ask == askListOwn)
			if a.Last {
				if j.lists--; j.lists == 0 {
					j.listed()
				}
			}
		}
	case *wire.ExtTags:
		st = a.Status
		if st == wire.OK {
			j.tags(i, ask, a)
		}
	case *wire.Ack:
		st = a.Status
		if st == wire.OK {
			j.objects[i].unsent--
			j.copyObject(i)
		}
	}
	if st != wire.OK {
		if st == wire.DiskFailed {
			s.m.failed = true
		}
		if st == wire.StaleEpoch {
			s.m.open = closed // OPEN tells by whom
		}
		if st == wire.NoSpace {
			j.noSpace()
			return
		}
		j.fail(fmt.Sprintf("status %d", st))
	}
}

func (j *syncJob) tags(i, ask int, a *wire.ExtTags) {
	o := &j.objects[i]
	if ask == askTags {
		o.want = a.Tags
		if o.mark.Less(a.Mark) || !o.atSource {
			o.mark = a.Mark
		}
	} else {
		o.have, o.had = a.Tags, a.Mark
	}
	if o.asked--; o.asked == 0 {
		j.copyObject(i)
	}
}

// count is step 1 of grow: from now on every ack, flush and lease needs the
// disk's answer, and the in-sync members know it durably.
func (j *syncJob) count() {
	m := j.m
	v := m.v
	if m.lease <= v.c.now || v.change != nil || v.pending != nil || v.frozenSince != 0 {
		j.phase = syncEnd
		j.ready = true
		return
	}
	j.ready = false
	if v.c.mut.BarrierBeforeCount {
		j.phase, j.barrier = syncFlush, v.wseq
		return
	}
	if v.c.mut.GrowWithoutCount {
		j.phase = syncCommit
		return
	}
	m.counted = true
	v.pending = m
	v.config.serial++
	j.phase = syncCount
	v.dirty, v.c.wake = true, true
}

// settleBarrier is step 2: a FLUSH of everything acked before step 1. It also tells
// the disk the flush mark, and what its log has from before this join must be below
// that: nobody else has what was given up on that disk alone, so the next takeover
// would take it for the newest there is.
func (j *syncJob) settleBarrier() {
	m := j.m
	v := m.v
	if j.flushed {
		j.phase = syncCommit
		v.c.wake = true
		return
	}
	if j.flushing || !v.committedTo(j.barrier) || m.zombies > 0 || !m.usable() {
		return
	}
	if told := v.alone[m.disk]; v.flushMark.Less(v.mark(told)) && told > 0 && !v.c.mut.GivenUpAlone {
		v.flushTo(told)
		return
	}
	// What was acked is at the disk, and durable with this flush, also what is newer
	// than a write that waits for space: its mark only does not say so.
	j.flushing, j.barrier = true, min(j.barrier, v.commitWseq)
	v.c.sendFlush(m, j.barrier)
}

func (j *syncJob) flushedTo(upto uint64) {
	if j.phase == syncFlush && upto >= j.barrier {
		j.flushed = true
	}
	j.flushing = false
}

// progress: left is 0 as long as nothing can be said.
func (j *syncJob) progress() (done, total, bytes uint64, left time.Duration) {
	if j.done > 0 {
		left = time.Duration(float64(j.m.v.c.now.Sub(j.began)) / float64(j.done) * float64(uint64(len(j.objects))-j.done))
	}
	return j.done, uint64(len(j.objects)), j.bytes, left
}
