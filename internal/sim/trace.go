package sim

import (
	"fmt"
	"strings"

	"roseau/internal/base/ids"
	"roseau/internal/block/wire"
)

// traceMessage prints what passes over a link, but heartbeats, reads and the
// acknowledgements of writes: a trace is read by people.
func (l *link) traceMessage(way string, m wire.Message) {
	if l.g.w.opt.Trace == nil {
		return
	}
	text := ""
	switch m := m.(type) {
	case *wire.Write:
		text = fmt.Sprintf("WRITE %d+%d %v%s", m.Offset/4096, len(m.Data)/4096, m.Mark, writeFlags(m.Flags))
	case *wire.Zero:
		text = fmt.Sprintf("ZERO %d+%d %v%s", m.Offset/4096, m.Length/4096, m.Mark, writeFlags(m.Flags))
	case *wire.Ack:
		if m.Status != wire.OK {
			text = fmt.Sprintf("ACK %v: status %d", m.Mark, m.Status)
		}
	case *wire.Open:
		text = fmt.Sprintf("OPEN disk %s epoch %d inc %d flags %d", m.Disk.Short(), m.Promise.Epoch, m.Promise.Inc, m.Flags)
	case *wire.Flush:
		text = fmt.Sprintf("FLUSH to %d, flush mark %v", m.Upto, m.Piggyback.FlushMark)
	case *wire.FlushAck:
		text = fmt.Sprintf("FLUSH_ACK to %d: status %d", m.Upto, m.Status)
	case *wire.WindowReq:
		text = fmt.Sprintf("WINDOW_REQ from %v", m.From)
	case *wire.Config:
		text = fmt.Sprintf("CONFIG version %d out %s pending %s complete=%v", m.Told.CfgVersion, shorts(m.Told.Out), m.Told.Pending.Short(), m.Told.Complete)
	case *wire.SyncBegin:
		text = "SYNC_BEGIN"
	case *wire.ExtListReq:
		text = fmt.Sprintf("EXT_LIST_REQ from %v", m.From)
	case *wire.ExtList:
		text = fmt.Sprintf("EXT_LIST %v", m.Entries)
	case *wire.ExtTags:
		text = fmt.Sprintf("EXT_TAGS %v, %d tags", m.Mark, len(m.Tags))
	case *wire.SyncWrite:
		text = fmt.Sprintf("SYNC_WRITE extent %d %v, %d blocks, tombstone=%v", m.Extent, m.Mark, len(m.Blocks), m.Tombstone)
	case *wire.SyncEnd:
		text = "SYNC_END"
	case *wire.Repair:
		text = fmt.Sprintf("REPAIR extent %d block %d", m.Extent, m.Block)
	case *wire.Release:
		text = "RELEASE"
	}
	if text != "" {
		l.g.w.tracef("%s %s %s: %s", l.g.name(), way, l.node.name(), text)
	}
}

func writeFlags(f wire.WriteFlags) string {
	out := ""
	for _, x := range []struct {
		flag wire.WriteFlags
		name string
	}{{wire.WriteFUA, " fua"}, {wire.WriteResent, " resent"}, {wire.ZeroDiscard, " discard"}} {
		if f&x.flag != 0 {
			out += x.name
		}
	}
	return out
}

func shorts(list []ids.ID) string {
	var out []string
	for _, id := range list {
		out = append(out, id.Short())
	}
	return "[" + strings.Join(out, " ") + "]"
}
