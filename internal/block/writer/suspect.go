package writer

import "slices"

// suspect reports whether m has to leave at a takeover because its disk lost a
// durable part of its log or of its metadata: records up to the flush mark may be
// missing there, with tags that look right, and the window does not tell. It
// stays if in one of its segments no other copy could take its place: whole, and
// warm as long as a guest remembers what it was told.
func (m *member) suspect() bool {
	v := m.v
	if v.c.state != Reconciling || m.open != opened || !m.ack.Damaged {
		return false
	}
	for i := range v.segs {
		s := &v.segs[i]
		if !slices.Contains(s.members, m) {
			continue
		}
		rest := 0
		for _, o := range s.members {
			if o != m && o.counted && !v.isOut(o) && o.usable() && !o.ack.Damaged && (!o.cold || !v.c.cfg.GuestAlive) {
				rest++
			}
		}
		if rest < max(1, v.rec.Cfg.MinISR) {
			return false
		}
	}
	return true
}
