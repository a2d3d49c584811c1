package disk

import (
	"slices"

	"roseau/internal/base/ids"
	"roseau/internal/block/wire"
	"roseau/internal/core/repl"
)

// CheckPromise compares a promise in force (zero = none) with a new one: OK
// means that it is to be logged. The same promise again is OK, also when it was
// released: that it is final is told by VolumeInfo.Released.
func CheckPromise(cur, next repl.Promise, imports bool) wire.Status {
	switch {
	case cur == (repl.Promise{}):
		return wire.OK
	case imports && next.Generation.Cluster == cur.Generation.Cluster && next.Generation.Volume > cur.Generation.Volume:
		return wire.OK
	case next.Generation != cur.Generation:
		return wire.OtherGeneration
	case next.Epoch < cur.Epoch:
		return wire.StaleEpoch
	case next.Epoch > cur.Epoch:
		return wire.OK
	case next.Nonce != cur.Nonce:
		return wire.OtherNonce
	case next.Inc < cur.Inc:
		return wire.StaleEpoch
	case next.Inc == cur.Inc && next != cur:
		return wire.OtherNonce // one (epoch, nonce, inc) belongs to one node and run
	}
	return wire.OK
}

// Append logs a record. The order of calls is the order of the log. Statuses:
// OK (written; with Durable: durable), StaleEpoch, Released, OutOfOrder,
// NoSpace (not logged: send it again; later marks of that extent are refused
// until it came), TagChanged, Unreadable (KindRepair: the tag cannot be read),
// BadRequest, DiskFailed.
func (c *Core) Append(token uint64, in Record) {
	if c.needsUpgrade(token, &in) {
		return
	}
	r := c.newRecord(token, in)
	if s := c.admit(r, &in); s != wire.OK {
		c.refuse(r, s)
		return
	}
	if in.Kind == KindRepair {
		c.startRepair(r, r.vol.chain(r.Extent, in.Object), in.Expect)
		return
	}
	e := r.vol.addObject(r.Extent, r.Object)
	live := in.Kind != KindSync && in.Kind != KindSyncTombstone
	if live && e.nospc != (repl.Mark{}) && !c.o.Mutations.PassRefused {
		if e.nospc.Less(r.Mark) {
			c.refuse(r, wire.NoSpace)
			return
		}
		e.nospc = repl.Mark{}
	}
	if live && !e.order.Less(r.Mark) {
		if in.Resent && !c.o.Mutations.NoDuplicates {
			c.resent(r, e)
			return
		}
		c.refuse(r, wire.OutOfOrder)
		return
	}
	if !c.needSlot(r, e, in.Kind == KindWrite && !in.Reserve) {
		if live {
			e.nospc = r.Mark
		}
		c.refuse(r, wire.NoSpace)
		return
	}
	if live {
		e.order = r.Mark
	}
	if c.isFresh(r, e) {
		r.Flags |= flagFresh
	}
	c.enqueue(r, e)
}

// recsAtOnce: records of one time become useless at about one time, so the memory
// of a few can live as long as any of them.
const recsAtOnce = 16

func (c *Core) newRec() *rec {
	if len(c.recs) == 0 {
		c.recs = make([]rec, recsAtOnce)
	}
	r := &c.recs[0]
	c.recs = c.recs[1:]
	return r
}

// setCRC keeps the checksums of a write; one is copied.
func (r *rec) setCRC(crc []uint32) {
	if r.CRC = crc; len(crc) == 1 {
		r.crc1[0] = crc[0]
		r.CRC = r.crc1[:]
	}
}

func (c *Core) newRecord(token uint64, in Record) *rec {
	r := c.newRec()
	r.token, r.answer, r.durable, r.data = token, true, in.Durable, in.Data
	r.Extent, r.Object, r.Mark = in.Extent, in.Object, in.Mark
	switch in.Kind {
	case KindWrite:
		r.Type, r.Block, r.Count = recWrite, uint16(in.Block), uint16(in.Count)
		r.setCRC(in.CRC)
	case KindZero:
		r.Type, r.Block, r.Count = recZero, uint16(in.Block), uint16(in.Count)
	case KindTombstone, KindSyncTombstone:
		r.Type, r.Count = recTombstone, uint16(c.sb.ExtentBlocks)
	case KindSync:
		r.Type, r.Blocks = recSync, in.Blocks
	case KindRepair:
		r.Type, r.Blocks = recRepair, []wire.SyncBlock{{Block: uint16(in.Block), Tag: in.Tag}}
	}
	return r
}

// admit checks what does not depend on the extent.
func (c *Core) admit(r *rec, in *Record) wire.Status {
	v := c.vols[in.Volume]
	switch {
	case c.dead != nil:
		return wire.DiskFailed
	case v == nil:
		return wire.BadRequest
	case !c.o.Mutations.EpochUnchecked && (in.Writer.Epoch != v.Promise.Epoch || in.Writer.Inc != v.Promise.Inc):
		return wire.StaleEpoch
	case v.Released && !c.o.Mutations.EpochUnchecked:
		return wire.Released
	case r.Type == 0 || in.Extent > 1<<40 || len(in.Data) != r.payloadBlocks()*BlockBytes,
		in.Kind == KindWrite && len(in.CRC) != in.Count,
		(in.Kind == KindWrite || in.Kind == KindZero) && (in.Block < 0 || in.Count <= 0 || in.Block+in.Count > c.ExtentBlocks()),
		r.payloadBlocks() > c.MaxRecordBlocks():
		return wire.BadRequest
	}
	seen := -1
	for _, b := range r.Blocks {
		// Sorted and unique: a block twice in one record has no defined winner.
		if int(b.Block) <= seen || int(b.Block) >= c.ExtentBlocks() || !b.Tag.HasData() && b.Tag != (wire.Tag{}) && b.Tag != wire.Hole &&
			(b.Tag != wire.Lost || in.Kind != KindSync) {
			return wire.BadRequest
		}
		seen = int(b.Block)
	}
	if len(r.Blocks) == 0 && (in.Kind == KindSync || in.Kind == KindRepair) {
		return wire.BadRequest
	}
	r.vol = v
	return wire.OK
}

// SetLimit says how many slots may be in use before writes of guests that need a
// new one are refused for lack of space; the rest is for repairs. 0: no limit. A
// limit below what is in use takes nothing away.
func (c *Core) SetLimit(slots int) { c.limit = slots }

// needSlot takes a slot if the record brings something and the object has none.
func (c *Core) needSlot(r *rec, e *ext, limited bool) bool {
	full := c.limit > 0 && len(c.slots)-c.free >= c.limit
	if full && c.o.Mutations.FullForAll && r.isWrite() {
		return false
	}
	if e.slot >= 0 || !r.fills(e) {
		return true
	}
	if limited && full && !c.o.Mutations.NoLimit {
		return false
	}
	if e.slot = c.allocSlot(); e.slot < 0 {
		return false
	}
	r.vol.slots++
	return true
}

// enqueue puts an admitted record at the end of the log to be.
func (c *Core) enqueue(r *rec, e *ext) {
	v := r.vol
	r.ext, r.Index = e, uint32(v.index)
	e.gathering++
	if e.mark.Less(r.Mark) {
		e.mark = r.Mark
	}
	if v.Max.Less(r.Mark) {
		v.Max = r.Mark
	}
	if v.Flush.Less(r.Mark) {
		r.inWindow = true
		v.window = append(v.window, r)
	}
	c.log.gather = append(c.log.gather, r)
}

// resent answers a duplicate of a record that the window still holds.
func (c *Core) resent(r *rec, e *ext) {
	for _, o := range r.vol.window {
		if o.ext != e || o.Mark != r.Mark || o.Type != r.Type || o.Block != r.Block || o.Count != r.Count ||
			!slices.Equal(o.CRC, r.CRC) || o.Flags&flagUnverified != 0 {
			continue
		}
		// A flush pseudo-record stands behind it: answered when it is written,
		// or durable.
		c.freeData(r)
		r.Type, r.vol = recFlush, nil
		c.log.gather = append(c.log.gather, r)
		return
	}
	c.refuse(r, wire.OutOfOrder)
}

func (c *Core) refuse(r *rec, s wire.Status) {
	c.freeData(r)
	c.answer(r, s)
}

func (c *Core) freeData(r *rec) {
	if r.data != nil {
		if r.cached {
			c.dataBytes -= len(r.data)
			r.cached = false
		}
		c.pool.Free(r.data)
		r.data = nil
	}
}

// Control logs a control record; it is in force for every later Append at once
// and answered when durable. A promise below the one in force answers
// StaleEpoch, OtherNonce or OtherGeneration (see CheckPromise); another kind for
// a volume that is not known, BadRequest.
func (c *Core) Control(token uint64, ctl Control) {
	if c.dead != nil {
		c.complete(token, wire.DiskFailed)
		return
	}
	v := c.vols[ctl.Volume]
	if v == nil && ctl.Kind == ControlDrop {
		c.complete(token, wire.OK)
		return
	}
	if v == nil && (ctl.Kind != ControlPromise || ctl.Volume.IsZero()) || len(ctl.Told.Out) > maxToldOut || len(ctl.Told.Snaps) > maxToldSnaps {
		c.complete(token, wire.BadRequest)
		return
	}
	if v == nil {
		if v = c.addVolume(ctl.Volume); v == nil {
			c.complete(token, wire.NoSpace)
			return
		}
	}
	switch ctl.Kind {
	case ControlPromise:
		if s := CheckPromise(v.Promise, ctl.Promise, ctl.Import); s != wire.OK && !(s == wire.OtherNonce && c.o.Mutations.NonceUnchecked) {
			c.complete(token, s)
			return
		}
		c.promise(v, ctl)
	case ControlRelease:
		v.Released = true
	case ControlConfig:
		v.Told = ctl.Told
		v.Told.Out, v.Told.Snaps = slices.Clone(ctl.Told.Out), slices.Clone(ctl.Told.Snaps)
		v.heard = true
		c.permitMerge(v)
		if ctl.Told.Complete {
			c.judged(v)
		}
	case ControlSyncDone:
		v.Damaged = false
		c.judged(v)
	case ControlDrop:
		c.drop(token, v)
		return
	default:
		c.complete(token, wire.BadRequest)
		return
	}
	if !ctl.Boot.IsZero() {
		v.Boot = ctl.Boot
	}
	r := c.volumeRecord(v)
	r.token, r.answer, r.durable = token, true, true
	if ctl.Kind == ControlPromise && c.o.Mutations.AckPromiseNotDurable {
		c.answer(r, wire.OK)
	}
	c.log.gather = append(c.log.gather, r)
}

func (c *Core) promise(v *volume, ctl Control) {
	if v.Promise != ctl.Promise {
		if v.Promise.Epoch != ctl.Promise.Epoch {
			v.Released = false
		}
		v.mayMerge = false         // until the new holder says that all is in sync
		for _, e := range v.exts { // order does not show: each is reset alone
			for ; e != nil; e = e.older {
				e.nospc = repl.Mark{}
			}
		}
	}
	v.Promise = ctl.Promise
}

// volumeRecord makes the record that carries the whole entry of a volume.
func (c *Core) volumeRecord(v *volume) *rec {
	v.Version++
	c.tableNew = true
	r := &rec{vol: v}
	r.Type, r.Index = recVolume, uint32(v.index)
	r.Body = make([]byte, volumeEntryBytes)
	v.volumeEntry.encode(r.Body)
	return r
}

func (c *Core) drop(token uint64, v *volume) {
	delete(c.vols, v.Volume)
	v.dropped = true
	c.tableNew = true
	for _, r := range v.window {
		r.inWindow = false
	}
	v.window, v.tombs = nil, nil
	r := &rec{vol: v, token: token, answer: true, durable: true}
	r.Type, r.Index = recDrop, uint32(v.index)
	r.Body = append([]byte(nil), v.Volume[:]...)
	c.log.gather = append(c.log.gather, r)
}

func (c *Core) newVolume(e volumeEntry, index int) *volume {
	return &volume{volumeEntry: e, index: index, crc: volumeCRC(e.Volume), exts: map[uint64]*ext{}, mut: &c.o.Mutations}
}

// addVolume takes a free index of the table, or returns nil.
func (c *Core) addVolume(id ids.ID) *volume {
	limit := int((c.sb.TableBytes - tableHeaderBytes) / volumeEntryBytes)
	i := slices.Index(c.byIndex, nil)
	if i < 0 {
		if i = len(c.byIndex); i >= limit {
			return nil
		}
		c.byIndex = append(c.byIndex, nil)
	}
	v := c.newVolume(volumeEntry{Volume: id}, i)
	c.byIndex[i] = v
	c.vols[id] = v
	c.tableNew = true
	return v
}

// Flush makes every record appended before it durable and then moves the
// volume's durable mark to upto.
func (c *Core) Flush(token uint64, volume ids.ID, upto repl.Mark) {
	v := c.vols[volume]
	if c.dead != nil || v == nil {
		s := wire.DiskFailed
		if c.dead == nil {
			s = wire.BadRequest
		}
		c.complete(token, s)
		return
	}
	r := &rec{vol: v, token: token, answer: true, durable: true, upto: upto}
	r.Type = recFlush
	c.log.gather = append(c.log.gather, r)
}

// SetFlushMark tells the in-sync-set-wide flush mark; it never moves back.
func (c *Core) SetFlushMark(volume ids.ID, m repl.Mark) {
	v := c.vols[volume]
	if v == nil || !v.Flush.Less(m) {
		return
	}
	v.Flush = m
	v.marksDirty = true
	v.mergeScan = true
	c.pruneWindow(v)
	if c.o.Mutations.FlushMarkOfAll {
		for _, id := range c.Volumes() {
			c.SetFlushMark(id, m)
		}
	}
}

func (c *Core) pruneWindow(v *volume) {
	kept := v.window[:0]
	v.unverified = 0
	for _, r := range v.window {
		switch above := v.Flush.Less(r.Mark); {
		case above || r.Flags&flagUnverified != 0 && r.isWrite(): // see judged
			kept = append(kept, r)
			if above && r.Flags&flagUnverified != 0 {
				v.unverified++
			}
		default:
			r.inWindow = false
		}
	}
	clear(v.window[len(kept):])
	v.window = kept
}

// judged forgets the list of the dropped tail: a takeover has ended, or the copy
// was compared with another one. Until then the list stays, also what is below
// the flush mark: for a writer that is proof of damage.
func (c *Core) judged(v *volume) {
	v.window = slices.DeleteFunc(v.window, func(r *rec) bool {
		if r.Flags&flagUnverified == 0 {
			return false
		}
		r.inWindow = false
		return true
	})
	v.unverified = 0
}

// ForgetTombstones drops tombstones up to m: all members of the placement are
// in sync and durable beyond it.
func (c *Core) ForgetTombstones(volume ids.ID, m repl.Mark) {
	v := c.vols[volume]
	if v == nil || !v.TombForget.Less(m) {
		return
	}
	v.TombForget = m
	v.marksDirty = true
	v.forgetTombs()
}

// forgetTombs drops the tombstones up to TombForget that hide nothing.
func (v *volume) forgetTombs() {
	kept := v.tombs[:0]
	for _, e := range v.tombs {
		switch {
		case e.tomb && !v.TombForget.Less(e.tombMark) && e.gathering == 0 && e.slot < 0 && (e.object == 0 || e.older == nil):
			v.removeObject(e)
			e.inTombs = false
		case e.remembered():
			kept = append(kept, e)
		default:
			e.inTombs = false
		}
	}
	clear(v.tombs[len(kept):])
	v.tombs = kept
}
