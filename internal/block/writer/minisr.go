package writer

import (
	"roseau/internal/base/ids"
	"roseau/internal/core/repl"
)

// min_isr bounds what is answered, not who may be put out: as long as a segment
// has fewer in-sync copies, writes and flushes are carried out and not answered,
// reads are. So a copy that came back without a part of what it had acked can be
// put out and brought up to date, although only one complete copy is left. While
// no copy is there that could be brought up to date nobody is put out below
// min_isr: the one that is away may return with everything, and the volume waits
// for it.

// setShort notes whether the volume has fewer in-sync copies than min_isr, and
// answers what waited for them. What was carried out meanwhile is on every member
// of the set that is now in force: a copy joins with all writes, and its grow has
// flushed what was flushed before it counted.
func (v *volume) setShort(short bool) {
	if v.short == short {
		return
	}
	c := v.c
	v.short = short
	if short {
		v.reportShort()
		return
	}
	for r := v.unanswered.head; r != nil; r = v.unanswered.head {
		v.unanswered.remove(r)
		c.out.Done = append(c.out.Done, Completion{Request: r, Result: Done, Shared: r.state.shared})
	}
}

// reportShort tells the operator why nothing is answered.
func (v *volume) reportShort() {
	if v.short && v.c.state == Serving {
		v.c.report(ReportHealth, v.id, ids.ID{}, "fewer in-sync copies than min_isr: writes and flushes are not answered until another copy is in sync")
	}
}

// mends reports whether s may go below min_isr: all that stay are there, and
// another copy, put out or about to be, is there to be brought up to date.
func (s *segment) mends() bool {
	found := false
	for _, m := range s.members {
		switch {
		case s.lacks(m):
		case m.counted && m.leaving == "" && !m.v.isOut(m):
			if !m.usable() {
				return false
			}
		case m.failed, m.absent, !m.node.up, m.v.c.mut.NoMending:
		case m.v.isOut(m):
			found = true
		default:
			found = found || m.open == opened && (m.leaving == repl.OutRestarted || m.leaving == repl.OutDamaged)
		}
	}
	return found
}
