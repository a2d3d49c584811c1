package replica

import (
	"time"

	"roseau/internal/base/clock"
	"roseau/internal/block/disk"
	"roseau/internal/block/wire"
	"roseau/internal/core/repl"
)

// checkPromise compares the promise in force with a new one: OK means that it
// may be made. A released epoch is final, whatever the inc.
func checkPromise(cur repl.Promise, released bool, next repl.Promise, imports bool) wire.Status {
	if released && next.Generation == cur.Generation && next.Epoch == cur.Epoch && next.Nonce == cur.Nonce {
		return wire.Released
	}
	return disk.CheckPromise(cur, next, imports)
}

// grantBinds is how long a grant of L binds the replica: 10 % for the drift of
// the two clocks.
func (c *Core) grantBinds() time.Duration {
	if c.o.Mutations.NoMargin {
		return c.o.Lease
	}
	return c.o.Lease + c.o.Lease/10
}

// grant tells the state of the lease of the promise in force, and until when a
// higher promise must wait (0 = not at all).
func (c *Core) grant(now clock.Instant, s *slot, info *disk.VolumeInfo) (wire.GrantState, clock.Instant) {
	if info.Promise.Epoch == 0 || info.Released || c.o.Mutations.DeadEndsLease {
		return wire.GrantNone, 0
	}
	if s.granted != 0 {
		until := s.granted.Add(c.grantBinds())
		switch {
		case now >= until:
			return wire.GrantLapsed, 0
		case s.stalled && !c.o.Mutations.StalledVetoes:
			return wire.GrantStalled, until // no veto for PREPARE, and yet waited for
		}
		return wire.GrantLive, until
	}
	if until := s.disk.since.Add(c.grantBinds()); !s.known && now < until && !c.o.Mutations.NoRestartWait {
		if c.o.Mutations.UnknownAsLapsed {
			return wire.GrantLapsed, until
		}
		return wire.GrantUnknown, until
	}
	return wire.GrantLapsed, 0
}

// provedDead reports whether OPEN names exactly the promise in force, made on
// the same node for the same run: the kernel's lock proved that its holder is
// gone [S18].
func provedDead(m *wire.Open, cur *repl.Promise) bool {
	return m.Flags&wire.OpenPredecessorDead != 0 &&
		m.Predecessor == wire.PredecessorID{Epoch: cur.Epoch, Nonce: cur.Nonce, Inc: cur.Inc} &&
		cur.Epoch != 0 && m.Promise.Node == cur.Node && m.Promise.Run == cur.Run &&
		m.Promise.Generation == cur.Generation
}

func (c *Core) open(now clock.Instant, cn *conn, m *wire.Open) {
	ack := &wire.OpenAck{ReqID: m.ReqID}
	d := c.disk(m.Disk)
	if d == nil || d.dead {
		ack.Status = wire.DiskFailed // for certain: what it was given is opened, or cannot be
		if c.opening[m.Disk] {
			ack.Status = wire.Busy
		}
		c.send(cn.id, ack)
		return
	}
	if m.Promise.Node != cn.peer || m.Volume.IsZero() || m.Promise.Epoch == 0 || m.Promise.Nonce.IsZero() || m.SizeBytes < 0 {
		ack.Status = wire.BadRequest
		c.send(cn.id, ack)
		return
	}
	s := d.slotOf(m.Volume)
	info, _ := d.d.Volume(m.Volume)
	state, until := c.grant(now, s, &info)
	if provedDead(m, &info.Promise) {
		state, until = wire.GrantLapsed, 0
	}
	ack.Grant = state
	if until > now {
		ack.GrantLeft = until.Sub(now)
	}
	c.describe(ack, s, &info, m)
	if st := checkPromise(info.Promise, info.Released, m.Promise, m.Flags&wire.OpenImport != 0); st != wire.OK && !(st == wire.OtherNonce && c.o.Mutations.NonceUnchecked) {
		ack.Status = st
		c.send(cn.id, ack)
		return
	}
	if m.Flags&wire.OpenTry != 0 {
		if state != wire.GrantLive && state != wire.GrantUnknown && !c.o.Mutations.NoReservation {
			s.reservedUntil, s.reservedFor = now.Add(Reservation), m.Promise.Epoch
		}
		c.send(cn.id, ack)
		return
	}
	if c.o.Mutations.OpenStopsAll {
		for _, o := range d.slots { // order does not show
			if o != s {
				o.reservedUntil = now.Add(c.grantBinds())
			}
		}
	}
	if lower(s.wanted, m.Promise) || s.wanted.Generation != m.Promise.Generation {
		s.wanted = m.Promise
	} else if lower(m.Promise, s.wanted) {
		ack.Status, ack.Promised = wire.StaleEpoch, s.wanted
		c.send(cn.id, ack)
		return
	}
	if reopen := info.Promise == m.Promise; !reopen && until > now {
		ack.Status = wire.LeaseRunning
		c.send(cn.id, ack)
		return
	}
	c.promise(now, cn, s, &info, m)
}

// describe fills in what the disk knows of the volume.
func (c *Core) describe(ack *wire.OpenAck, s *slot, info *disk.VolumeInfo, m *wire.Open) {
	ack.Promised = info.Promise
	ack.Released = info.Released
	ack.Cold = info.Promise.Run == m.Promise.Run && info.Promise.Epoch != 0 && info.Boot != s.disk.boot && !c.o.Mutations.IgnoreCold
	ack.Told = info.Told
	ack.DurableMark, ack.FlushMark, ack.MaxMark = info.DurableMark, info.FlushMark, info.MaxMark
	ack.Damaged = info.Damaged
	ack.Unverified = uint32(info.Unverified)
	ack.WindowBytes = uint64(info.WindowBytes)
}

// promise logs the promise; OPEN_ACK follows when it is durable. Older handles
// end now: the disk refuses what is appended under them from here on.
func (c *Core) promise(now clock.Instant, cn *conn, s *slot, info *disk.VolumeInfo, m *wire.Open) {
	ctl := disk.Control{Kind: disk.ControlPromise, Volume: s.volume, Promise: m.Promise, Import: m.Flags&wire.OpenImport != 0}
	if info.Promise.Epoch == 0 || info.Promise.Run != m.Promise.Run || info.Boot.IsZero() || c.o.Mutations.BootAtEveryOpen {
		ctl.Boot = s.disk.boot // the first promise for this run
	}
	if !c.o.Mutations.KeepOldHandles {
		c.endHandle(s)
	}
	if info.Promise != m.Promise {
		// The grant of the promise in force has run out, or its holder is gone.
		s.granted, s.stalled, s.known = 0, false, true
		if m.Promise.Epoch >= s.reservedFor || m.Promise.Generation != info.Promise.Generation {
			s.reservedUntil, s.reservedFor = 0, 0
		}
	}
	p := pending{kind: pendOpen, conn: cn.id, reqID: m.ReqID, disk: s.disk, slot: s, guard: cn.guard, open: m}
	if c.o.Mutations.OpenBeforeDurable {
		p.answered = true
		s.disk.d.Control(c.pending.add(p), ctl)
		c.opened(now, &p, wire.OK)
	} else {
		s.disk.d.Control(c.pending.add(p), ctl)
	}
	s.disk.active(now)
}

// opened answers OPEN after the promise.
func (c *Core) opened(now clock.Instant, p *pending, st wire.Status) {
	m, s := p.open, p.slot
	ack := &wire.OpenAck{ReqID: m.ReqID, Status: st}
	info, _ := s.disk.d.Volume(s.volume)
	c.describe(ack, s, &info, m)
	ack.Grant, _ = c.grant(now, s, &info)
	if st == wire.OK && info.Promise != m.Promise {
		ack.Status = wire.StaleEpoch // overtaken while it was logged
	}
	if ack.Status == wire.OK {
		h := c.newHandle(s, p.guard, m.Promise, m.SizeBytes)
		ack.Handle = h.id
		c.out.Events = append(c.out.Events, Event{Kind: Promised, Disk: s.disk.id, Volume: s.volume})
	}
	c.send(p.conn, ack)
	if ack.Status == wire.OK {
		c.tellDamage(s)
	}
}
