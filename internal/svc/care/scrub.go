package care

import (
	"context"
	"errors"
	"fmt"
	"time"

	"roseau/internal/base/clock"
	"roseau/internal/base/errs"
	"roseau/internal/base/ids"
	"roseau/internal/driver/storagectl"
	"roseau/internal/driver/volumectl"
	"roseau/internal/model"
	"roseau/internal/store"
	"roseau/internal/svc/event"
	"roseau/internal/svc/records"
)

// healAgain is the pause before a volume is opened again for the same damage.
const healAgain = 10 * time.Minute

// heal opens volumes that nobody has open and of which a copy is damaged: the
// replica tells the writer, the writer repairs.
func (o *office) heal(ctx context.Context, reports map[ids.ID]DiskReport) error {
	blocks := map[ids.ID]int{}
	for _, r := range reports {
		for _, d := range r.Damage {
			blocks[d.Volume] += d.Blocks
		}
	}
	for id := range o.healed {
		if blocks[id] == 0 {
			delete(o.healed, id)
		}
	}
	now := o.s.env.Clock.Now()
	for _, vol := range sorted(blocks) {
		if a, ok := o.healed[vol]; ok && (a.blocks == blocks[vol] && now.Sub(a.at) < healAgain || now.Sub(a.at) < 10*time.Second) {
			continue
		}
		w, err := o.s.volumes.WriterOf(ctx, vol)
		if errors.Is(err, errs.NotFound) {
			continue // it is being deleted
		}
		if err != nil {
			return err
		}
		if w.Open || w.Held {
			continue // its writer was told
		}
		o.healed[vol] = attempt{now, blocks[vol]}
		if err := o.s.volumes.Maintain(ctx, vol, false); err != nil {
			o.s.env.Log.Info("a damaged volume is not opened yet", "vol", vol, "err", err)
		}
	}
	return nil
}

// comparison is one volume's, as far as the office follows it.
type comparison struct {
	epoch   uint64 // of the writer that was asked; 0: nobody was
	runs    int    // comparisons that this writer had ended before
	since   clock.Instant
	waiting string // why it has not begun
	done    int
	total   int
}

// compareLimit is how long a volume may not be open, or not answer, until it is
// skipped in this cycle.
const compareLimit = 3 * time.Minute

// scrub moves the scrubs of all pools on.
func (o *office) scrub(ctx context.Context, disks []*model.Disk, reports map[ids.ID]DiskReport) error {
	pools, err := store.List[model.Pool](ctx, o.s.env.Store)
	if err != nil {
		return err
	}
	for _, p := range pools {
		if err := o.scrubPool(ctx, p, disks, reports); err != nil {
			return fmt.Errorf("scrub pool %s: %w", p.Name, err)
		}
	}
	return nil
}

func (o *office) scrubPool(ctx context.Context, p *model.Pool, disks []*model.Disk, reports map[ids.ID]DiskReport) error {
	rec, err := store.GetRecord[records.PoolScrub](ctx, o.s.env.Store, records.PoolScrubKey(p.ID))
	if err != nil {
		return err
	}
	ps := rec.Value
	wall := o.s.env.Clock.Wall().UTC()
	if rec.Revision == 0 { // a new pool: its first cycle begins now
		ps.Ended = wall
		return o.save(ctx, p, rec.Revision, ps)
	}
	if !ps.Running {
		if ps.Paused {
			return o.stopDisks(ctx, p, disks, reports)
		}
		if wall.Sub(ps.Ended) < ps.Every() {
			return nil
		}
		ps.Running, ps.Started = true, wall
		return o.save(ctx, p, rec.Revision, ps)
	}
	left, err := o.passes(ctx, p, &ps, disks, reports)
	if err != nil {
		return err
	}
	vols, err := o.compare(ctx, p, &ps)
	if err != nil || left || vols {
		return err
	}
	ps.Running, ps.Ended = false, wall
	if err := o.save(ctx, p, rec.Revision, ps); err != nil {
		return err
	}
	level := event.Info
	if ps.BadBlocks+ps.BadMetadata+ps.Differ > 0 {
		level = event.Warn
	}
	o.s.env.Events.Emit(level, "pool "+p.Name, fmt.Sprintf("scrubbed in %s: %s", ps.Ended.Sub(ps.Started).Round(time.Second), Findings(ps)))
	return nil
}

// Findings says in a few words what a scrub found.
func Findings(ps records.PoolScrub) string {
	if ps.BadBlocks+ps.BadMetadata+ps.Differ+ps.Skipped == 0 {
		return "nothing bad found"
	}
	s := fmt.Sprintf("%d bad blocks, %d pieces of bad metadata, %d blocks that differed, %d rewritten by comparison", ps.BadBlocks, ps.BadMetadata, ps.Differ, ps.Repaired)
	if ps.Skipped > 0 {
		s += fmt.Sprintf("; %d volumes were not compared", ps.Skipped)
	}
	return s
}

func (o *office) save(ctx context.Context, p *model.Pool, rev int64, ps records.PoolScrub) error {
	key := records.PoolScrubKey(p.ID)
	_, err := o.s.env.Store.Commit(ctx, store.NewTx().If(key, rev).Put(key, ps))
	if errors.Is(err, errs.Conflict) {
		return nil // an order came in between: the next round sees it
	}
	return err
}

// passes orders a pass over each disk of the pool and reports whether one is left.
// Disks that do not serve are not waited for.
func (o *office) passes(ctx context.Context, p *model.Pool, ps *records.PoolScrub, disks []*model.Disk, reports map[ids.ID]DiskReport) (left bool, err error) {
	ps.BadBlocks, ps.BadMetadata = 0, 0
	for _, d := range disks {
		r, ok := reports[d.ID]
		if d.Spec.Pool != p.ID || !ok || !d.Status.State.Serving() {
			continue
		}
		ps.BadBlocks += r.Scrub.BadBlocks
		ps.BadMetadata += r.Scrub.BadMetadata
		if r.Scrub.Ended.After(ps.Started) {
			continue
		}
		left = true
		if r.Scrub.Running && r.Scrub.DutyPercent == ps.DutyPercent {
			continue
		}
		if err := o.s.scrubDisk(ctx, d, storagectl.ScrubRequest{Disk: d.ID, DutyPercent: ps.DutyPercent}); err != nil {
			o.s.env.Log.Info("scrub of a disk is not begun", "disk", d.Name, "err", err)
		}
	}
	return left, nil
}

func (o *office) stopDisks(ctx context.Context, p *model.Pool, disks []*model.Disk, reports map[ids.ID]DiskReport) error {
	var all error
	for _, d := range disks {
		if r := reports[d.ID]; d.Spec.Pool == p.ID && r.Scrub.Running {
			all = errors.Join(all, o.s.scrubDisk(ctx, d, storagectl.ScrubRequest{Disk: d.ID, Stop: true}))
		}
	}
	return all
}

// compare has the copies of the pool's volumes compared, one volume at a time, and
// reports whether one is left.
func (o *office) compare(ctx context.Context, p *model.Pool, ps *records.PoolScrub) (left bool, err error) {
	vols, err := store.List[model.Volume](ctx, o.s.env.Store)
	if err != nil {
		return true, err
	}
	recs, err := store.ListRecords[records.VolumeScrub](ctx, o.s.env.Store, records.VolumeScrubPrefix)
	if err != nil {
		return true, err
	}
	ps.Differ, ps.Repaired, ps.Skipped = 0, 0, 0
	for _, v := range vols {
		if v.Spec.Pool != p.Name || v.Created.After(ps.Started) {
			continue
		}
		r := recs[records.VolumeScrubKey(v.ID)].Value
		if r.Ended.After(ps.Started) {
			ps.Differ += r.Differ
			ps.Repaired += r.Repaired
			if r.Skipped != "" {
				ps.Skipped++
			}
			continue
		}
		if left {
			continue
		}
		left = true
		out, err := o.compareVolume(ctx, v)
		if err != nil {
			return true, err
		}
		if out == nil {
			continue
		}
		delete(o.scrubs, v.ID)
		if _, err := o.s.env.Store.Commit(ctx, store.NewTx().Put(records.VolumeScrubKey(v.ID), out)); err != nil {
			return true, err
		}
	}
	return left, nil
}

// compareVolume moves the comparison of one volume on; not nil: it is over.
func (o *office) compareVolume(ctx context.Context, v *model.Volume) (*records.VolumeScrub, error) {
	s := o.s
	now := s.env.Clock.Now()
	c := o.scrubs[v.ID]
	if c == nil {
		c = &comparison{since: now}
		o.scrubs[v.ID] = c
	}
	over := func(r records.VolumeScrub) (*records.VolumeScrub, error) {
		r.Ended = s.env.Clock.Wall().UTC()
		return &r, nil
	}
	w, err := s.volumes.WriterOf(ctx, v.ID)
	if errors.Is(err, errs.NotFound) {
		return over(records.VolumeScrub{Skipped: "it is gone"})
	}
	if err != nil {
		return nil, err
	}
	if w.Epoch == 0 {
		return over(records.VolumeScrub{}) // never written
	}
	var st volumectl.ScrubStatus
	switch {
	case !w.Open && w.Held:
		err = errs.New(errs.Unavailable, "its VM is starting, or waits for it")
	case !w.Open:
		if err = s.volumes.Maintain(ctx, v.ID, true); err == nil {
			err = errs.New(errs.Unavailable, "it is being opened")
		}
	default:
		st, err = s.volumes.Scrub(ctx, v.ID, w, volumectl.ScrubShow)
		if err == nil && c.epoch != w.Epoch {
			c.epoch, c.runs = w.Epoch, st.Runs
			// A maintenance writer that was opened for this has begun by itself, and
			// may have ended.
			if w.Purpose == "maintenance" && (st.Running || st.Runs > 0) {
				c.runs = 0
			} else {
				st, err = s.volumes.Scrub(ctx, v.ID, w, volumectl.ScrubStart)
			}
		}
	}
	if err != nil {
		c.waiting = err.Error()
		if now.Sub(c.since) > compareLimit {
			return over(records.VolumeScrub{Skipped: c.waiting})
		}
		return nil, nil
	}
	c.done, c.total, c.waiting = st.Done, st.Total, ""
	if st.Running || st.Runs <= c.runs || st.Healing > 0 {
		if st.Running || st.Healing > 0 {
			c.since = now
		}
		return nil, nil
	}
	if w.Purpose == "maintenance" {
		if err := s.volumes.EndMaintenance(ctx, v.ID); err != nil {
			return nil, err
		}
	}
	if st.Differ > 0 {
		s.env.Events.Emit(event.Error, "volume "+v.Name, fmt.Sprintf("its copies differed in %d blocks although each was sound: a replication bug; the newest is kept, what was overwritten stands in the evidence directory of the node that writes it", st.Differ))
	}
	return over(records.VolumeScrub{Extents: st.Done, Differ: st.Differ, Repaired: st.Repaired})
}
