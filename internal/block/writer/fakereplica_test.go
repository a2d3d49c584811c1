package writer

import (
	"encoding/binary"
	"math/rand/v2"
	"slices"
	"time"

	"roseau/internal/base/clock"
	"roseau/internal/base/ids"
	"roseau/internal/block/wire"
	"roseau/internal/core/repl"
)

// fakeDisk is a replica as a list of records: the oracle's idea of what a
// replica does, with nothing clever.
type fakeDisk struct {
	id   ids.ID
	node *fakeNode
	vols map[ids.ID]*fakeVol
	dead bool
	full bool // refuses writes for lack of space
}

type fakeRecord struct {
	kind    wire.RecordKind
	mark    repl.Mark
	block   int64 // of the volume
	count   int
	values  []uint64 // per block, of a write
	stamp   uint32
	sync    bool
	tags    []wire.Tag // of sync records
	durable bool
}

type fakeBlock struct {
	value uint64
	tag   wire.Tag
	mark  repl.Mark
}

type fakeVol struct {
	disk    *fakeDisk
	promise repl.Promise
	// boot identity under which the run was first promised, or renewed
	boot     ids.ID
	released bool
	told     wire.Told
	durable  repl.Mark
	flush    repl.Mark // ISR-wide, learned
	log      []fakeRecord
	blocks   map[int64]fakeBlock
	exts     map[uint64]repl.Mark
	tomb     map[uint64]bool
	// volatile:
	handle     wire.Handle
	grantUntil clock.Instant
	grantKnown bool
	stalled    bool
	live       map[int64]bool
	syncing    bool
	rot        map[int64]bool // blocks that cannot be read
	lost       map[int64]bool // blocks whose tag is gone
	damaged    bool           // part of the durable log is gone
	fua        int            // writes that were written through
	reserved   clock.Instant
	promisedAt clock.Instant // a fresh promise counts as live in PREPARE, before its first grant
}

// fakeNode is a node's storage process.
type fakeNode struct {
	w       *world
	id      ids.ID
	up      bool
	boot    ids.ID
	session ids.ID
	started clock.Instant
	disks   []*fakeDisk
	conns   []*fakeConn
}

func (n *fakeNode) fresh(reboot bool) {
	n.session = n.w.newID()
	n.started = n.w.now
	if reboot {
		n.boot = n.w.newID()
	}
	for _, d := range n.disks {
		for _, id := range sortedIDs(d.vols) {
			v := d.vols[id]
			if reboot {
				v.losePower(n.w.rng)
			}
			v.handle, v.grantUntil, v.grantKnown, v.live, v.syncing, v.reserved = 0, 0, false, nil, false, 0
		}
	}
}

func sortedIDs[T any](m map[ids.ID]T) []ids.ID {
	var s []ids.ID
	for id := range m {
		s = append(s, id)
	}
	slices.SortFunc(s, ids.ID.Compare)
	return s
}

// losePower keeps a prefix of the records that are not durable.
func (v *fakeVol) losePower(rng *rand.Rand) {
	n := 0
	for n < len(v.log) && v.log[n].durable {
		n++
	}
	keep := n
	if len(v.log) > n {
		keep += rng.IntN(len(v.log) - n + 1)
	}
	v.log = v.log[:keep]
	for i := range v.log {
		v.log[i].durable = true
	}
	log := v.log
	v.log, v.blocks, v.exts, v.tomb = nil, map[int64]fakeBlock{}, map[uint64]repl.Mark{}, map[uint64]bool{}
	for _, r := range log {
		v.apply(r)
	}
}

func (v *fakeVol) tag(block int64) wire.Tag {
	if v.lost[block] {
		return lostTag
	}
	return v.blocks[block].tag
}

func (v *fakeVol) makeDurable() {
	for i := range v.log {
		v.log[i].durable = true
	}
}

func (v *fakeVol) apply(r fakeRecord) {
	v.log = append(v.log, r)
	ext := uint64(r.block / repl.ExtentBlocks)
	if v.exts[ext].Less(r.mark) {
		v.exts[ext] = r.mark
	}
	v.tomb[ext] = r.kind == wire.RecordTombstone && !r.sync
	for i := 0; i < r.count; i++ {
		b := r.block + int64(i)
		delete(v.rot, b)
		delete(v.lost, b)
		if r.sync {
			if r.tags[i] == (wire.Tag{}) {
				delete(v.blocks, b)
			} else {
				v.blocks[b] = fakeBlock{r.values[i], r.tags[i], r.mark}
			}
			continue
		}
		switch r.kind {
		case wire.RecordWrite:
			v.blocks[b] = fakeBlock{r.values[i], wire.Tag{CRC: uint32(r.values[i]), Stamp: r.stamp}, r.mark}
		case wire.RecordZero:
			v.blocks[b] = fakeBlock{0, wire.Tag{CRC: 1, Stamp: r.stamp}, r.mark}
		case wire.RecordTombstone:
			delete(v.blocks, b)
		}
	}
}

func stampOf(data []byte) uint64 { return binary.LittleEndian.Uint64(data) }

func blockOf(value uint64) []byte {
	b := make([]byte, repl.BlockBytes)
	binary.LittleEndian.PutUint64(b, value)
	return b
}

const fakeLease = 3 * time.Second

func (n *fakeNode) disk(id ids.ID) *fakeDisk {
	for _, d := range n.disks {
		if d.id == id {
			return d
		}
	}
	return nil
}

func (n *fakeNode) byHandle(h wire.Handle) *fakeVol {
	for _, d := range n.disks {
		for _, id := range sortedIDs(d.vols) {
			if v := d.vols[id]; h != 0 && v.handle == h {
				return v
			}
		}
	}
	return nil
}

// serve answers one message of a connection.
func (n *fakeNode) serve(msg wire.Message) []wire.Message {
	one := func(m wire.Message) []wire.Message { return []wire.Message{m} }
	switch m := msg.(type) {
	case *wire.Open:
		return one(n.serveOpen(m))
	case *wire.Heartbeat:
		return one(n.serveBeat(m))
	case *wire.Write:
		v := n.byHandle(m.Handle)
		if v == nil {
			return one(&wire.Ack{ReqID: m.ReqID, Status: wire.BadHandle, Mark: m.Mark})
		}
		r := fakeRecord{kind: wire.RecordWrite, mark: m.Mark, block: m.Offset / repl.BlockBytes, count: len(m.CRC), stamp: uint32(m.Mark.Wseq)}
		for i := range m.CRC {
			r.values = append(r.values, stampOf(m.Data[i*repl.BlockBytes:]))
		}
		return one(v.change(m.ReqID, r, m.Flags, m.Piggyback))
	case *wire.Zero:
		v := n.byHandle(m.Handle)
		if v == nil {
			return one(&wire.Ack{ReqID: m.ReqID, Status: wire.BadHandle, Mark: m.Mark})
		}
		r := fakeRecord{kind: wire.RecordZero, mark: m.Mark, block: m.Offset / repl.BlockBytes, count: int(m.Length / repl.BlockBytes), stamp: uint32(m.Mark.Wseq)}
		if m.Flags&wire.ZeroDiscard != 0 && m.Length == repl.ExtentBytes {
			r.kind = wire.RecordTombstone
		}
		return one(v.change(m.ReqID, r, m.Flags, m.Piggyback))
	case *wire.Flush:
		v := n.byHandle(m.Handle)
		if v == nil {
			return one(&wire.FlushAck{ReqID: m.ReqID, Status: wire.BadHandle})
		}
		v.learn(m.Piggyback)
		v.makeDurable()
		v.durable = repl.Mark{Epoch: v.promise.Epoch, Wseq: m.Upto}
		return one(&wire.FlushAck{ReqID: m.ReqID, Upto: m.Upto, Session: n.session})
	case *wire.Read:
		return one(n.serveRead(m))
	case *wire.WindowReq:
		return one(n.serveWindow(m))
	case *wire.Config:
		v := n.byHandle(m.Handle)
		if v == nil {
			return one(&wire.ConfigAck{ReqID: m.ReqID, Status: wire.BadHandle})
		}
		v.makeDurable()
		v.told = m.Told
		if m.Told.Complete {
			v.boot = n.boot
		}
		return one(&wire.ConfigAck{ReqID: m.ReqID})
	case *wire.Repair:
		v := n.byHandle(m.Handle)
		b := int64(m.Extent)*repl.ExtentBlocks + int64(m.Block)
		if v == nil || v.tag(b) != m.Expect {
			return one(&wire.Ack{ReqID: m.ReqID, Status: wire.TagChanged})
		}
		delete(v.rot, b)
		delete(v.lost, b)
		if m.Tag == (wire.Tag{}) {
			delete(v.blocks, b)
		} else {
			v.blocks[b] = fakeBlock{stampOf(m.Data), m.Tag, v.blocks[b].mark}
		}
		return one(&wire.Ack{ReqID: m.ReqID})
	case *wire.Release:
		v := n.byHandle(m.Handle)
		if v == nil {
			return one(&wire.SimpleAck{ReqID: m.ReqID, Status: wire.BadHandle})
		}
		v.makeDurable()
		v.released, v.handle = true, 0
		return one(&wire.SimpleAck{ReqID: m.ReqID})
	}
	return n.serveSync(msg)
}

func (v *fakeVol) learn(p wire.Piggyback) {
	if v.flush.Less(p.FlushMark) {
		v.flush = p.FlushMark
	}
}

func (v *fakeVol) change(id uint64, r fakeRecord, f wire.WriteFlags, p wire.Piggyback) wire.Message {
	v.learn(p)
	ext := uint64(r.block / repl.ExtentBlocks)
	if !v.exts[ext].Less(r.mark) {
		if f&wire.WriteResent != 0 {
			return &wire.Ack{ReqID: id, Mark: r.mark}
		}
		v.disk.node.w.fail("disk %s: wseq %v after %v in extent %d", v.disk.id.Short(), r.mark, v.exts[ext], ext)
		return &wire.Ack{ReqID: id, Status: wire.OutOfOrder, Mark: r.mark}
	}
	if v.disk.full && r.kind == wire.RecordWrite {
		return &wire.Ack{ReqID: id, Status: wire.NoSpace, Mark: r.mark}
	}
	if v.syncing {
		for i := range r.count {
			v.live[r.block+int64(i)] = true
		}
	}
	v.apply(r)
	if f&wire.WriteFUA != 0 {
		v.fua++
		v.makeDurable()
	}
	return &wire.Ack{ReqID: id, Mark: r.mark}
}

func (n *fakeNode) leaseEnd(v *fakeVol) clock.Instant {
	if !v.grantKnown && v.promise != (repl.Promise{}) {
		return n.started.Add(fakeLease * 11 / 10)
	}
	return v.grantUntil
}

func (n *fakeNode) serveOpen(m *wire.Open) wire.Message {
	d := n.disk(m.Disk)
	if d == nil || d.dead {
		return &wire.OpenAck{ReqID: m.ReqID, Status: wire.DiskFailed}
	}
	v := d.vols[m.Volume]
	if v == nil {
		v = &fakeVol{disk: d, blocks: map[int64]fakeBlock{}, exts: map[uint64]repl.Mark{}, tomb: map[uint64]bool{}}
		d.vols[m.Volume] = v
	}
	a := &wire.OpenAck{ReqID: m.ReqID, Promised: v.promise, Released: v.released, Told: v.told,
		DurableMark: v.durable, FlushMark: v.flush, WindowBytes: 1 << 20}
	for _, r := range v.log {
		if !r.sync && a.MaxMark.Less(r.mark) {
			a.MaxMark = r.mark
		}
	}
	a.Damaged = v.damaged
	p, q := v.promise, m.Promise
	a.Cold = p.Epoch > 0 && v.boot != n.boot
	end := n.leaseEnd(v)
	switch {
	case p.Epoch == 0 || v.released:
		a.Grant = wire.GrantNone
	case !v.grantKnown && end > n.w.now:
		a.Grant = wire.GrantUnknown
	case v.promisedAt != 0 && n.w.now < v.promisedAt.Add(fakeLease) && !v.stalled:
		a.Grant = wire.GrantLive
	case end > n.w.now && v.stalled:
		a.Grant = wire.GrantStalled
	case end > n.w.now:
		a.Grant = wire.GrantLive
	default:
		a.Grant = wire.GrantLapsed
	}
	if end > n.w.now {
		a.GrantLeft = end.Sub(n.w.now)
	}
	dead := m.Flags&wire.OpenPredecessorDead != 0 && m.Predecessor == (wire.PredecessorID{Epoch: p.Epoch, Nonce: p.Nonce, Inc: p.Inc}) &&
		p.Node == q.Node && p.Run == q.Run
	same := p.SameHolder(q)
	switch {
	case q.Epoch < p.Epoch, same && q.Inc < p.Inc:
		a.Status = wire.StaleEpoch
		return a
	case q.Epoch == p.Epoch && !same && p.Epoch > 0:
		a.Status = wire.OtherNonce
		return a
	case same && v.released:
		a.Status = wire.Released
		return a
	}
	if m.Flags&wire.OpenTry != 0 {
		if a.Grant == wire.GrantLapsed || a.Grant == wire.GrantStalled {
			v.reserved = n.w.now.Add(2 * time.Second)
		}
		return a
	}
	renew := same && q.Inc == p.Inc
	if !renew && !dead && !v.released && p.Epoch > 0 && end > n.w.now {
		v.reserved = n.w.now.Add(time.Hour) // renewals of the old epoch stop
		a.Status = wire.LeaseRunning
		return a
	}
	if p.Epoch == 0 || v.released {
		v.boot = n.boot
	}
	if !renew {
		v.grantKnown, v.grantUntil, v.promisedAt, v.stalled = true, 0, n.w.now, false
		v.released = false
	}
	v.makeDurable()
	v.promise, v.reserved, v.syncing, v.live = q, 0, false, nil
	n.w.handles++
	v.handle = n.w.handles
	a.Handle = v.handle
	return a
}

func (n *fakeNode) serveBeat(m *wire.Heartbeat) wire.Message {
	a := &wire.HeartbeatAck{SendTime: m.SendTime, Grant: fakeLease}
	for _, hv := range m.Volumes {
		v := n.byHandle(hv.Handle)
		switch {
		case v == nil:
			a.Refused = append(a.Refused, wire.HandleRefusal{Handle: hv.Handle, Status: wire.BadHandle})
		case v.reserved > n.w.now:
			a.Refused = append(a.Refused, wire.HandleRefusal{Handle: hv.Handle, Status: wire.Busy})
		default:
			v.learn(hv.Piggyback)
			v.stalled = m.Stalled > 2*time.Second
			v.grantKnown = true
			v.grantUntil = max(v.grantUntil, n.w.now.Add(fakeLease*11/10))
		}
	}
	for _, d := range n.disks {
		a.Disks = append(a.Disks, wire.DiskHealth{Disk: d.id, Failed: d.dead})
	}
	return a
}

func (n *fakeNode) serveRead(m *wire.Read) wire.Message {
	v := n.byHandle(m.Handle)
	if v == nil {
		return &wire.ReadReply{ReqID: m.ReqID, Status: wire.BadHandle}
	}
	a := &wire.ReadReply{ReqID: m.ReqID}
	first := m.Offset / repl.BlockBytes
	for i := range m.Length / repl.BlockBytes {
		if v.rot[first+i] || v.lost[first+i] {
			a.Status = wire.Unreadable
			a.Bad = append(a.Bad, uint16(i))
			a.Tags = append(a.Tags, v.tag(first+i))
			continue
		}
		b, ok := v.blocks[first+i]
		if ok && a.Data == nil {
			a.Data = make([]byte, m.Length)
		}
		if ok {
			binary.LittleEndian.PutUint64(a.Data[i*repl.BlockBytes:], b.value)
		}
		a.Tags = append(a.Tags, b.tag)
	}
	a.Marks = []repl.Mark{v.exts[uint64(m.Offset/repl.ExtentBytes)]}
	return a
}

func (n *fakeNode) serveWindow(m *wire.WindowReq) wire.Message {
	v := n.byHandle(m.Handle)
	if v == nil {
		return &wire.Window{ReqID: m.ReqID, Status: wire.BadHandle, Last: true}
	}
	a := &wire.Window{ReqID: m.ReqID, Last: true}
	for _, r := range v.log {
		if m.From.Less(r.mark) && !r.sync {
			a.Entries = append(a.Entries, wire.WindowEntry{
				Kind: r.kind, Verified: true, Extent: uint64(r.block / repl.ExtentBlocks),
				Block: uint16(r.block % repl.ExtentBlocks), Count: uint16(r.count), Mark: r.mark,
			})
		}
	}
	return a
}

func (n *fakeNode) serveSync(msg wire.Message) []wire.Message {
	one := func(m wire.Message) []wire.Message { return []wire.Message{m} }
	switch m := msg.(type) {
	case *wire.SyncBegin:
		v := n.byHandle(m.Handle)
		if v == nil {
			return one(&wire.SimpleAck{ReqID: m.ReqID, Status: wire.BadHandle})
		}
		v.syncing, v.live = true, map[int64]bool{}
		return one(&wire.SimpleAck{ReqID: m.ReqID})
	case *wire.ExtListReq:
		v := n.byHandle(m.Handle)
		if v == nil {
			return one(&wire.ExtList{ReqID: m.ReqID, Status: wire.BadHandle, Last: true})
		}
		a := &wire.ExtList{ReqID: m.ReqID, Last: true}
		for e := range uint64(8) {
			if mk, ok := v.exts[e]; ok && m.From.Less(mk) {
				a.Entries = append(a.Entries, wire.ExtEntry{Extent: e, Mark: mk, Tombstone: v.tomb[e]})
			}
		}
		return one(a)
	case *wire.ExtTagsReq:
		v := n.byHandle(m.Handle)
		if v == nil {
			return one(&wire.ExtTags{ReqID: m.ReqID, Status: wire.BadHandle})
		}
		a := &wire.ExtTags{ReqID: m.ReqID, Mark: v.exts[m.Extent]}
		tags := make([]wire.Tag, repl.ExtentBlocks)
		some := false
		for i := range tags {
			if t := v.tag(int64(m.Extent)*repl.ExtentBlocks + int64(i)); t != (wire.Tag{}) {
				tags[i], some = t, true
			}
		}
		if some {
			a.Tags = tags
		}
		return one(a)
	case *wire.SyncWrite:
		v := n.byHandle(m.Handle)
		if v == nil {
			return one(&wire.Ack{ReqID: m.ReqID, Status: wire.BadHandle})
		}
		if v.disk.full && !m.Tombstone {
			return one(&wire.Ack{ReqID: m.ReqID, Status: wire.NoSpace})
		}
		v.syncWrite(m)
		return one(&wire.Ack{ReqID: m.ReqID})
	case *wire.SyncEnd:
		v := n.byHandle(m.Handle)
		if v == nil {
			return one(&wire.SimpleAck{ReqID: m.ReqID, Status: wire.BadHandle})
		}
		v.makeDurable()
		v.boot = n.boot
		v.syncing, v.live, v.damaged = false, nil, false
		return one(&wire.SimpleAck{ReqID: m.ReqID})
	}
	return nil
}

func (v *fakeVol) syncWrite(m *wire.SyncWrite) {
	put := func(b int64, tag wire.Tag, value uint64) {
		if v.live[b] {
			return
		}
		v.apply(fakeRecord{mark: m.Mark, block: b, count: 1, sync: true, tags: []wire.Tag{tag}, values: []uint64{value}})
	}
	base := int64(m.Extent) * repl.ExtentBlocks
	if m.Tombstone {
		some := false
		for i := range int64(repl.ExtentBlocks) {
			some = some || v.live[base+i]
		}
		for i := range int64(repl.ExtentBlocks) {
			if _, ok := v.blocks[base+i]; ok {
				put(base+i, wire.Tag{}, 0)
			}
		}
		if !some {
			v.apply(fakeRecord{mark: m.Mark, block: base, sync: true, kind: wire.RecordTombstone})
			v.tomb[m.Extent] = true
		}
		return
	}
	at := 0
	for _, b := range m.Blocks {
		var value uint64
		if at := base + int64(b.Block); b.Tag == lostTag {
			if !v.live[at] {
				if v.lost == nil {
					v.lost = map[int64]bool{}
				}
				v.lost[at] = true
				delete(v.blocks, at)
			}
			continue
		}
		if b.Tag != (wire.Tag{}) {
			value = stampOf(m.Data[at:])
			at += repl.BlockBytes
		}
		put(base+int64(b.Block), b.Tag, value)
	}
}
