package volume

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"time"

	"roseau/internal/base/clock"
	"roseau/internal/base/errs"
	"roseau/internal/base/ids"
	"roseau/internal/core/place"
	"roseau/internal/core/repl"
	"roseau/internal/driver/guardctl"
	"roseau/internal/driver/volumectl"
	"roseau/internal/model"
	"roseau/internal/store"
	"roseau/internal/svc/pool"
	"roseau/internal/svc/records"
)

// Timing of repairs.
const (
	repairInterval = 2 * time.Second
	// deadFor is how long a disk must have been failed or missing, on a node that
	// lives, before its copies are rebuilt elsewhere: a cable that is pulled and
	// put back costs a resync only.
	deadFor = 5 * time.Second
	// askAgain is the pause between two requests for the same repair.
	askAgain = 30 * time.Second
	// maxMaintenance bounds the maintenance writers that one round starts.
	maxMaintenance = 4
)

// Run frees deleted volumes on this node's disks and, where this node holds the
// office, plans repairs.
func (s *Service) Run(ctx context.Context) error {
	done := make(chan error, 1)
	rctx, stop := context.WithCancel(ctx)
	defer stop()
	go func() {
		done <- s.env.Store.Elect(rctx, "repair", s.env.Node, func(ctx context.Context) error {
			p := &planner{s: s, dead: map[ids.ID]clock.Instant{}, asked: map[string]clock.Instant{}}
			return s.env.Loop(ctx, "repair", repairInterval, nil, p.round)
		})
	}()
	err := s.env.Loop(ctx, "free", freeInterval, nil, s.freeDead)
	stop()
	return errors.Join(err, <-done)
}

// planner remembers between rounds what it saw and asked.
type planner struct {
	s     *Service
	dead  map[ids.ID]clock.Instant // since when a disk is dead
	asked map[string]clock.Instant
}

// repair is one thing that should be done.
type repair struct {
	vol     *repl.VolumeRecord
	replace []volumectl.Replace // empty: bring back what is out
}

func (p *planner) round(ctx context.Context) error {
	view, err := pool.ReadView(ctx, p.s.env.Store)
	if err != nil {
		return err
	}
	disks, err := store.List[model.Disk](ctx, p.s.env.Store)
	if err != nil {
		return err
	}
	alive, err := store.AliveNodes(ctx, p.s.env.Store)
	if err != nil {
		return err
	}
	p.noteDead(disks, alive)
	started := 0
	var all error
	for _, r := range plan(view, disks, alive, p.deadNow()) {
		key := r.vol.ID.String() + fmt.Sprint(r.replace)
		now := p.s.env.Clock.Now()
		if t, ok := p.asked[key]; ok && now.Sub(t) < askAgain {
			continue
		}
		maintenance, err := p.do(ctx, view, alive, r, started < maxMaintenance)
		if maintenance {
			started++
		}
		p.asked[key] = now
		all = errors.Join(all, err)
	}
	return all
}

func (p *planner) noteDead(disks []*model.Disk, alive map[ids.ID]store.Session) {
	for _, d := range disks {
		_, up := alive[d.Spec.Node]
		isDead := d.Status.State == model.DiskFailed || d.Status.State == model.DiskMissing
		if !isDead || !up {
			delete(p.dead, d.ID)
		} else if _, known := p.dead[d.ID]; !known {
			p.dead[d.ID] = p.s.env.Clock.Now()
		}
	}
}

func (p *planner) deadNow() map[ids.ID]bool {
	out := map[ids.ID]bool{}
	for id, since := range p.dead {
		if p.s.env.Clock.Now().Sub(since) >= deadFor {
			out[id] = true
		}
	}
	return out
}

// plan lists the repairs that can be made now: first the volumes with the fewest
// copies. A dead disk is replaced by one of the same node: with as many nodes as
// copies no other may hold a second copy of a segment.
func plan(view *pool.View, disks []*model.Disk, alive map[ids.ID]store.Session, dead map[ids.ID]bool) []repair {
	usable := map[ids.ID]bool{}
	for _, d := range disks {
		_, up := alive[d.Spec.Node]
		usable[d.ID] = up && d.Status.State == model.DiskActive
	}
	var out []repair
	for _, id := range sortedKeys(view.Volumes) {
		v := view.Volumes[id]
		if v.Own.Epoch == 0 && len(v.Own.Out) == 0 && !slices.ContainsFunc(v.Seg.Disks, func(d ids.ID) bool { return dead[d] }) {
			continue
		}
		r := repair{vol: v}
		for _, d := range v.Seg.Disks {
			if dead[d] {
				if n, ok := replacement(view, v, d); ok {
					r.replace = append(r.replace, n)
				}
			}
		}
		back := false
		for d := range v.Own.Out {
			back = back || usable[d]
		}
		if len(r.replace) > 0 || back {
			out = append(out, r)
		}
	}
	slices.SortStableFunc(out, func(a, b repair) int {
		return records.Health(a.vol, view.Names, nil).Copies - records.Health(b.vol, view.Names, nil).Copies
	})
	return out
}

func sortedKeys(m map[ids.ID]*repl.VolumeRecord) []ids.ID {
	out := make([]ids.ID, 0, len(m))
	for id := range m {
		out = append(out, id)
	}
	slices.SortFunc(out, ids.ID.Compare)
	return out
}

// replacement chooses the successor of a dead disk and counts it as promised.
func replacement(view *pool.View, v *repl.VolumeRecord, dead ids.ID) (volumectl.Replace, bool) {
	ds := view.Disks[v.Cfg.Pool]
	i := slices.IndexFunc(ds, func(d place.Disk) bool { return d.ID == dead })
	if i < 0 {
		return volumectl.Replace{}, false
	}
	id, err := place.ReplaceDisk("", ds[i], ds)
	if err != nil || !apart(v, id, dead) {
		return volumectl.Replace{}, false
	}
	for j := range ds {
		if ds[j].ID == id {
			ds[j].Promised += place.SegmentBytes
		}
	}
	return volumectl.Replace{Old: dead, New: id, Node: ds[i].Node}, true
}

// apart reports that no segment has both disks. Disks of one node never share a
// segment, so a disk that the volume uses already may take over another's.
func apart(v *repl.VolumeRecord, a, b ids.ID) bool {
	for _, row := range v.Seg.Map {
		seen := 0
		for _, i := range row {
			if d := v.Seg.Disks[i]; d == a || d == b {
				seen++
			}
		}
		if seen > 1 {
			return false
		}
	}
	return true
}

// do asks the volume's writer, or opens a maintenance writer.
func (p *planner) do(ctx context.Context, view *pool.View, alive map[ids.ID]store.Session, r repair, mayStart bool) (started bool, err error) {
	own := r.vol.Own
	_, up := alive[own.Node]
	switch held, err := p.heldByVM(ctx, r.vol); {
	case err != nil:
		return false, err
	case held:
		if own.Purpose != repl.PurposeVM || !up {
			return false, nil // it is starting or being recovered: its guard repairs what is out
		}
		for _, x := range r.replace {
			path := fmt.Sprintf("/v1/nodes/%s/vms/%s/replace-disk", own.Node, r.vol.Cfg.VM)
			if err := p.s.env.Ask(ctx, own.Node, http.MethodPost, path, guardctl.ReplaceDiskRequest{Old: x.Old, New: x.New}, nil); err != nil {
				return false, p.say(view, r, x, err)
			}
			p.told(ctx, view, r, x)
		}
		return false, nil
	}
	if st, err := p.s.WriterStatus(ctx, r.vol.ID); err == nil && !final(st.Phase) {
		for _, x := range r.replace {
			if err := p.s.askReplace(ctx, own.Node, r.vol.ID, x); err != nil {
				return false, p.say(view, r, x, err)
			}
			p.told(ctx, view, r, x)
		}
		return false, nil
	}
	if !mayStart {
		return false, nil
	}
	node, ok := nodeWithCopy(view, alive, r.vol)
	if !ok {
		return false, nil
	}
	req := WriterRequest{Purpose: repl.PurposeMaintenance, Replace: r.replace}
	if err := p.s.openOn(ctx, node, r.vol.ID, req); err != nil {
		return false, fmt.Errorf("repair volume %s: %w", r.vol.ID, err)
	}
	for _, x := range r.replace {
		p.told(ctx, view, r, x)
	}
	return true, nil
}

// heldByVM reports whether the volume's VM is placed on a node.
func (p *planner) heldByVM(ctx context.Context, v *repl.VolumeRecord) (bool, error) {
	if v.Cfg.VM.IsZero() {
		return false, nil
	}
	pl, err := records.Placement(ctx, p.s.env.Store, v.Cfg.VM)
	return !pl.Value.Node.IsZero(), err
}

func (p *planner) told(ctx context.Context, view *pool.View, r repair, x volumectl.Replace) {
	p.s.env.Events.Emit("warn", "volume "+p.s.nameOf(ctx, r.vol.ID), fmt.Sprintf("rebuilds the copy of %s on %s", view.Names.DiskName(x.Old), view.Names.DiskName(x.New)))
}

func (p *planner) say(view *pool.View, r repair, x volumectl.Replace, err error) error {
	return fmt.Errorf("rebuild volume %s from %s onto %s: %w", r.vol.ID, view.Names.DiskName(x.Old), view.Names.DiskName(x.New), err)
}

func (s *Service) nameOf(ctx context.Context, id ids.ID) string {
	if v, err := store.GetID[model.Volume](ctx, s.env.Store, id); err == nil {
		return v.Name
	}
	return id.Short()
}

// nodeWithCopy returns the first living node, by name, that has an in-sync copy.
func nodeWithCopy(view *pool.View, alive map[ids.ID]store.Session, v *repl.VolumeRecord) (ids.ID, bool) {
	var nodes []ids.ID
	for _, g := range records.Groups(v, view.Names) {
		for _, n := range g {
			if _, up := alive[n]; up && !slices.Contains(nodes, n) {
				nodes = append(nodes, n)
			}
		}
	}
	slices.SortFunc(nodes, func(a, b ids.ID) int {
		if view.Names.NodeName(a) < view.Names.NodeName(b) {
			return -1
		}
		return 1
	})
	if len(nodes) == 0 {
		return ids.ID{}, false
	}
	return nodes[0], true
}

func (s *Service) askReplace(ctx context.Context, node, vol ids.ID, x volumectl.Replace) error {
	if node == s.env.Node {
		return s.writers.ReplaceDisk(ctx, vol, x)
	}
	return s.env.Ask(ctx, node, http.MethodPost, writerPath(node, vol)+"/replace-disk", x, nil)
}

// openOn starts a maintenance writer on a node, without waiting for it.
func (s *Service) openOn(ctx context.Context, node, vol ids.ID, req WriterRequest) error {
	if node != s.env.Node {
		err := s.env.Ask(ctx, node, http.MethodPost, writerPath(node, vol), req, nil)
		return err
	}
	v, err := store.GetID[model.Volume](ctx, s.env.Store, vol)
	if errors.Is(err, errs.NotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	return s.start(ctx, v, req)
}
