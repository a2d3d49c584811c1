package writer

import (
	"fmt"
	"slices"

	"roseau/internal/base/ids"
)

// Doubt is a copy that a segment could go on with only if an operator says so: it
// may lack what was acknowledged, and who could tell does not answer (2.6 step 6).
type Doubt struct {
	Disk ids.ID
	Node ids.ID
	// Unverified is how many records were at the end of its log that nothing proves
	// whole, of all volumes' on that disk for this one.
	Unverified uint32
	// Damaged: a part of its log that was durable is lost; nobody can name which
	// writes that concerns.
	Damaged  bool
	Missing  []ids.ID // disks of in-sync copies that do not answer, or are damaged too
	Segments int      // that wait for this
}

// doubts lists what AcceptUnverified would let go on now.
func (v *volume) doubts() []Doubt {
	c := v.c
	if !c.state.owned() || v.acceptTail || !slices.ContainsFunc(v.members, func(m *member) bool {
		return m.counted && m.open == opened && (m.ack.Damaged || m.ack.Unverified > 0)
	}) {
		return nil
	}
	var out []Doubt
	for i := range v.segs {
		s := &v.segs[i]
		if !v.doubtful(s) {
			continue
		}
		var missing []ids.ID
		for _, m := range s.members {
			if m.counted && !s.lacks(m) && (m.open != opened || m.ack.Damaged) {
				missing = append(missing, m.disk)
			}
		}
		for _, m := range s.members {
			if !m.counted || s.lacks(m) || m.open != opened || !m.ack.Damaged && m.ack.Unverified == 0 {
				continue
			}
			d := Doubt{Disk: m.disk, Node: m.node.id, Unverified: m.ack.Unverified, Damaged: m.ack.Damaged, Segments: 1}
			d.Missing = slices.DeleteFunc(slices.Clone(missing), func(o ids.ID) bool { return o == m.disk })
			k := slices.IndexFunc(out, func(o Doubt) bool { return o.Disk == d.Disk })
			if k < 0 {
				out = append(out, d)
				continue
			}
			out[k].Segments++
			for _, x := range d.Missing {
				if !slices.Contains(out[k].Missing, x) {
					out[k].Missing = append(out[k].Missing, x)
				}
			}
		}
	}
	return out
}

// doubtful reports whether a segment waits for nothing but an operator's word: at a
// takeover, or for the copy that it needs and that came back damaged.
func (v *volume) doubtful(s *segment) bool {
	if v.c.state == Opening {
		return v.judge(s, false) == openWait && v.judge(s, true) != openWait
	}
	return s.rest() == 0 && slices.ContainsFunc(s.members, func(m *member) bool {
		return m.counted && !v.isOut(m) && !s.lacks(m) && m.open == opened && (m.suspect() || m.newRun && m.ack.Damaged)
	})
}

// tellDoubt reports, once an opening, that nobody but an operator can end it.
func (c *Core) tellDoubt() {
	if c.doubtTold || c.now < c.since.Add(c.t.MemberWait) {
		return
	}
	for _, v := range c.vols {
		for _, d := range v.doubts() {
			c.doubtTold = true
			what := fmt.Sprintf("%d records at the end of its log are not proved whole", d.Unverified)
			if d.Damaged {
				what = "it lost a part of its log that was durable"
			}
			c.report(ReportWaiting, v.id, d.Disk, what+", and no other in-sync copy answers that could tell: `volume accept-tail` goes on with it")
		}
	}
}
