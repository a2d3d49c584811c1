package wire

import "roseau/internal/core/repl"

// The fields of each message in wire order. docs/formats/wire.md has the same
// in tables.

type coded interface {
	Message
	kind() kind
	code(c *coder)
}

func (*Hello) kind() kind { return kindHello }
func (m *Hello) code(c *coder) {
	c.id(&m.Cluster)
	c.u32(&m.Generation)
	c.id(&m.Node)
	c.id(&m.Guard)
	c.u8(&m.ProtoMin)
	c.u8(&m.ProtoMax)
}

func (*HelloAck) kind() kind { return kindHelloAck }
func (m *HelloAck) code(c *coder) {
	c.hdrStatus(&m.Status)
	c.id(&m.Node)
	c.id(&m.Session)
	c.u8(&m.Proto)
	slice(c, &m.Disks, 16, (*coder).id)
}

func (*Open) kind() kind { return kindOpen }
func (m *Open) code(c *coder) {
	c.hdrReq(&m.ReqID)
	c.u8((*uint8)(&m.Flags))
	if m.Flags&^(OpenTry|OpenPredecessorDead|OpenImport) != 0 {
		c.fail("open flags %#x", m.Flags)
	}
	c.id(&m.Volume)
	c.id(&m.Disk)
	c.promise(&m.Promise)
	c.u64(&m.Predecessor.Epoch)
	c.id(&m.Predecessor.Nonce)
	c.u32(&m.Predecessor.Inc)
	c.u32(&m.CfgVersion)
	c.i64(&m.SizeBytes)
}

func (*OpenAck) kind() kind { return kindOpenAck }
func (m *OpenAck) code(c *coder) {
	c.hdrReq(&m.ReqID)
	c.hdrStatus(&m.Status)
	c.hdrHandle(&m.Handle)
	c.promise(&m.Promised)
	c.bool(&m.Released)
	c.u8((*uint8)(&m.Grant))
	if m.Grant > GrantUnknown {
		c.fail("grant state %d", m.Grant)
	}
	c.duration(&m.GrantLeft)
	c.bool(&m.Cold)
	c.told(&m.Told)
	c.mark(&m.DurableMark)
	c.mark(&m.FlushMark)
	c.mark(&m.MaxMark)
	c.bool(&m.Damaged)
	c.u32(&m.Unverified)
	c.u64(&m.WindowBytes)
}

func (*WindowReq) kind() kind { return kindWindowReq }
func (m *WindowReq) code(c *coder) {
	c.hdrReq(&m.ReqID)
	c.hdrHandle(&m.Handle)
	c.hdrMark(&m.From)
}

// windowEntryBytes is the length of an entry without its checksums.
const windowEntryBytes = 1 + 1 + 4 + 8 + 2 + 2 + 16 + 4

// WindowEntryBytes is what e takes in a message: senders split their answers so
// that the sum stays well below MaxBodyBytes.
func WindowEntryBytes(e *WindowEntry) int { return windowEntryBytes + 4*len(e.CRC) }

func (c *coder) windowEntry(e *WindowEntry) {
	c.u8((*uint8)(&e.Kind))
	c.bool(&e.Verified)
	c.u32(&e.Object)
	c.u64(&e.Extent)
	c.u16(&e.Block)
	c.u16(&e.Count)
	c.mark(&e.Mark)
	slice(c, &e.CRC, 4, (*coder).u32)
	switch {
	case e.Kind < RecordWrite || e.Kind > RecordTombstone:
		c.fail("window entry of kind %d", e.Kind)
	case int(e.Block)+int(e.Count) > repl.ExtentBlocks:
		c.fail("window entry of blocks %d+%d", e.Block, e.Count)
	case len(e.CRC) != 0 && len(e.CRC) != int(e.Count):
		c.fail("window entry of %d blocks with %d checksums", e.Count, len(e.CRC))
	}
}

func (*Window) kind() kind { return kindWindow }
func (m *Window) code(c *coder) {
	c.hdrReq(&m.ReqID)
	c.hdrStatus(&m.Status)
	c.bool(&m.Last)
	slice(c, &m.Entries, windowEntryBytes, (*coder).windowEntry)
}

func (*Write) kind() kind { return kindWrite }
func (m *Write) code(c *coder) {
	c.hdrReq(&m.ReqID)
	c.hdrHandle(&m.Handle)
	c.hdrFlags(&m.Flags, WriteFUA|WriteResent|WriteReserve)
	c.hdrMark(&m.Mark)
	length := int64(len(m.Data))
	c.hdrRange(&m.Offset, &length)
	c.u32(&m.SnapSeq)
	c.piggyback(&m.Piggyback)
	slice(c, &m.CRC, 4, (*coder).u32)
	if int64(len(m.CRC))*repl.BlockBytes != length {
		c.fail("write of %d bytes with %d checksums", length, len(m.CRC))
	}
	c.payloadExactly(&m.Data, int(length))
}

func (*Zero) kind() kind { return kindZero }
func (m *Zero) code(c *coder) {
	c.hdrReq(&m.ReqID)
	c.hdrHandle(&m.Handle)
	c.hdrFlags(&m.Flags, WriteFUA|WriteResent|ZeroDiscard|WriteReserve)
	c.hdrMark(&m.Mark)
	c.hdrRange(&m.Offset, &m.Length)
	c.u32(&m.SnapSeq)
	c.piggyback(&m.Piggyback)
}

func (*Ack) kind() kind { return kindAck }
func (m *Ack) code(c *coder) {
	c.hdrReq(&m.ReqID)
	c.hdrStatus(&m.Status)
	c.hdrMark(&m.Mark)
	if m.Status != OK { // the hot case has no body
		c.promise(&m.Promised)
	}
}

func (*Flush) kind() kind { return kindFlush }
func (m *Flush) code(c *coder) {
	c.hdrReq(&m.ReqID)
	c.hdrHandle(&m.Handle)
	swap(c, &m.Upto, &c.h.wseq)
	c.piggyback(&m.Piggyback)
}

func (*FlushAck) kind() kind { return kindFlushAck }
func (m *FlushAck) code(c *coder) {
	c.hdrReq(&m.ReqID)
	c.hdrStatus(&m.Status)
	swap(c, &m.Upto, &c.h.wseq)
	c.id(&m.Session)
}

func (*Read) kind() kind { return kindRead }
func (m *Read) code(c *coder) {
	c.hdrReq(&m.ReqID)
	c.hdrHandle(&m.Handle)
	c.hdrRange(&m.Offset, &m.Length)
	c.bool(&m.Repair)
	c.bool(&m.Raw)
	c.u32(&m.Object)
}

func (*ReadReply) kind() kind { return kindReadReply }
func (m *ReadReply) code(c *coder) {
	c.hdrReq(&m.ReqID)
	c.hdrStatus(&m.Status)
	slice(c, &m.Tags, 8, (*coder).tag)
	slice(c, &m.Marks, 16, (*coder).mark)
	slice(c, &m.Bad, 2, (*coder).u16)
	c.payload(&m.Data)
	if len(m.Tags) > repl.ExtentBlocks || len(m.Marks) > 1 {
		c.fail("read reply of %d tags and %d marks", len(m.Tags), len(m.Marks))
	}
	last := -1
	for _, i := range m.Bad {
		if int(i) <= last || int(i) >= len(m.Tags) {
			c.fail("bad block %d of %d after %d", i, len(m.Tags), last)
		}
		last = int(i)
	}
}

func (*Heartbeat) kind() kind { return kindHeartbeat }
func (m *Heartbeat) code(c *coder) {
	c.instant(&m.SendTime)
	c.duration(&m.Stalled)
	slice(c, &m.Volumes, 36, func(c *coder, v *HeartbeatVolume) {
		c.u64((*uint64)(&v.Handle))
		c.piggyback(&v.Piggyback)
	})
}

func (*HeartbeatAck) kind() kind { return kindHeartbeatAck }
func (m *HeartbeatAck) code(c *coder) {
	c.instant(&m.SendTime)
	c.duration(&m.Grant)
	slice(c, &m.Refused, 78, func(c *coder, r *HandleRefusal) {
		c.u64((*uint64)(&r.Handle))
		c.status(&r.Status)
		c.promise(&r.Promised)
	})
	slice(c, &m.Disks, 33, func(c *coder, d *DiskHealth) {
		c.id(&d.Disk)
		c.duration(&d.ProbeAge)
		c.bool(&d.Failed)
		c.u64(&d.FreeSlots)
	})
}

func (*Config) kind() kind { return kindConfig }
func (m *Config) code(c *coder) {
	c.hdrReq(&m.ReqID)
	c.hdrHandle(&m.Handle)
	c.told(&m.Told)
}

func (*ConfigAck) kind() kind { return kindConfigAck }
func (m *ConfigAck) code(c *coder) {
	c.hdrReq(&m.ReqID)
	c.hdrStatus(&m.Status)
}

func (*ExtListReq) kind() kind { return kindExtListReq }
func (m *ExtListReq) code(c *coder) {
	c.hdrReq(&m.ReqID)
	c.hdrHandle(&m.Handle)
	c.hdrMark(&m.From)
}

// ExtEntryBytes is what an entry takes in a message.
const ExtEntryBytes = 8 + 4 + 16 + 1

func (*ExtList) kind() kind { return kindExtList }
func (m *ExtList) code(c *coder) {
	c.hdrReq(&m.ReqID)
	c.hdrStatus(&m.Status)
	c.bool(&m.Last)
	slice(c, &m.Entries, ExtEntryBytes, func(c *coder, e *ExtEntry) {
		c.u64(&e.Extent)
		c.u32(&e.Object)
		c.mark(&e.Mark)
		c.bool(&e.Tombstone)
	})
}

func (*ExtTagsReq) kind() kind { return kindExtTagsReq }
func (m *ExtTagsReq) code(c *coder) {
	c.hdrReq(&m.ReqID)
	c.hdrHandle(&m.Handle)
	swap(c, &m.Extent, &c.h.offset)
	swap(c, &m.Object, &c.h.length)
	c.bool(&m.Resolved)
}

func (*ExtTags) kind() kind { return kindExtTags }
func (m *ExtTags) code(c *coder) {
	c.hdrReq(&m.ReqID)
	c.hdrStatus(&m.Status)
	c.hdrMark(&m.Mark)
	slice(c, &m.Tags, 8, (*coder).tag)
	if len(m.Tags) != 0 && len(m.Tags) != repl.ExtentBlocks {
		c.fail("tag table of %d tags", len(m.Tags))
	}
}

func (*SyncBegin) kind() kind { return kindSyncBegin }
func (m *SyncBegin) code(c *coder) {
	c.hdrReq(&m.ReqID)
	c.hdrHandle(&m.Handle)
	flags := uint16(0)
	if m.Partial {
		flags = 1
	}
	swap(c, &flags, &c.h.flags)
	if flags > 1 {
		c.fail("type %d: flags %#x", c.h.kind, flags)
	}
	m.Partial = flags == 1
}

func (*SyncWrite) kind() kind { return kindSyncWrite }
func (m *SyncWrite) code(c *coder) {
	c.hdrReq(&m.ReqID)
	c.hdrHandle(&m.Handle)
	c.hdrMark(&m.Mark)
	swap(c, &m.Extent, &c.h.offset)
	swap(c, &m.Object, &c.h.length)
	c.bool(&m.Tombstone)
	slice(c, &m.Blocks, 10, func(c *coder, b *SyncBlock) {
		c.u16(&b.Block)
		c.tag(&b.Tag)
	})
	present, last := 0, -1
	for _, b := range m.Blocks {
		if int(b.Block) <= last || b.Block >= repl.ExtentBlocks {
			c.fail("sync block %d after %d", b.Block, last)
		}
		last = int(b.Block)
		if b.Tag.HasData() {
			present++
		}
	}
	c.payloadExactly(&m.Data, present*repl.BlockBytes)
}

func (*SyncEnd) kind() kind { return kindSyncEnd }
func (m *SyncEnd) code(c *coder) {
	c.hdrReq(&m.ReqID)
	c.hdrHandle(&m.Handle)
}

func (*SimpleAck) kind() kind { return kindSimpleAck }
func (m *SimpleAck) code(c *coder) {
	c.hdrReq(&m.ReqID)
	c.hdrStatus(&m.Status)
}

func (*Repair) kind() kind { return kindRepair }
func (m *Repair) code(c *coder) {
	c.hdrReq(&m.ReqID)
	c.hdrHandle(&m.Handle)
	c.hdrMark(&m.Mark)
	swap(c, &m.Extent, &c.h.offset)
	swap(c, &m.Object, &c.h.length)
	c.u16(&m.Block)
	c.tag(&m.Expect)
	c.tag(&m.Tag)
	if m.Block >= repl.ExtentBlocks {
		c.fail("repair of block %d", m.Block)
	}
	want := repl.BlockBytes
	if !m.Tag.HasData() {
		want = 0
	}
	c.payloadExactly(&m.Data, want)
}

func (*Release) kind() kind { return kindRelease }
func (m *Release) code(c *coder) {
	c.hdrReq(&m.ReqID)
	c.hdrHandle(&m.Handle)
}

func (*Damage) kind() kind { return kindDamage }
func (m *Damage) code(c *coder) {
	c.hdrHandle(&m.Handle)
	swap(c, &m.Extent, &c.h.offset)
	swap(c, &m.Object, &c.h.length)
	slice(c, &m.Blocks, 10, func(c *coder, b *SyncBlock) {
		c.u16(&b.Block)
		c.tag(&b.Tag)
	})
	last := -1
	for _, b := range m.Blocks {
		if int(b.Block) <= last || b.Block >= repl.ExtentBlocks {
			c.fail("damaged block %d after %d", b.Block, last)
		}
		last = int(b.Block)
	}
}

func (*SnapRead) kind() kind { return kindSnapRead }
func (m *SnapRead) code(c *coder) {
	c.hdrReq(&m.ReqID)
	c.hdrRange(&m.Offset, &m.Length)
	c.id(&m.Volume)
	c.id(&m.Disk)
	c.generation(&m.Generation)
	c.u32(&m.CfgVersion)
	c.u32(&m.Snapshot)
	if m.Snapshot == 0 {
		c.fail("read of snapshot 0")
	}
}
