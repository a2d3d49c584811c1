package volume

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"time"

	"roseau/internal/base/clock"
	"roseau/internal/base/errs"
	"roseau/internal/base/ids"
	"roseau/internal/base/size"
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
	// maxMaintenance bounds the maintenance writers at work.
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
			p := &planner{s: s, dead: map[ids.ID]clock.Instant{}, down: map[ids.ID]clock.Instant{}, asked: map[string]clock.Instant{}, level: map[ids.ID]place.Level{}, alone: map[ids.ID]string{}}
			return s.env.Loop(ctx, "repair", repairInterval, nil, p.round)
		})
	}()
	limits, stray := make(chan error, 1), make(chan error, 1)
	go func() { limits <- s.env.Loop(rctx, "limits", limitInterval, nil, s.setLimits) }()
	go func() {
		stray <- s.env.Loop(rctx, "stray copies", strayInterval, nil, (&janitor{s: s, asked: map[ids.ID]clock.Instant{}}).round)
	}()
	err := s.env.Loop(ctx, "free", freeInterval, nil, s.freeDead)
	stop()
	return errors.Join(err, <-done, <-limits, <-stray)
}

// limitInterval is how often the storage process is told how much of its disks is
// for guests: one that restarted has forgotten it.
const limitInterval = 2 * time.Second

func (s *Service) setLimits(ctx context.Context) error {
	view, err := pool.ReadView(ctx, s.env.Store)
	if err != nil {
		return err
	}
	mine := map[ids.ID]size.Bytes{}
	for _, p := range view.Pools {
		for id, b := range view.Limits(p) {
			if view.Names.DiskNode[id] == s.env.Node {
				mine[id] = b
			}
		}
	}
	if len(mine) == 0 {
		return nil
	}
	if err := s.storage.SetLimits(ctx, mine); err != nil {
		return fmt.Errorf("tell the disks how much guests may use: %w", err)
	}
	return nil
}

// planner remembers between rounds what it saw and asked.
type planner struct {
	s     *Service
	dead  map[ids.ID]clock.Instant // since when a disk is dead on a node that lives
	down  map[ids.ID]clock.Instant // since when a node is down, or has no storage process
	asked map[string]clock.Instant
	told  map[string]bool // alarms given
	level map[ids.ID]place.Level
	alone map[ids.ID]string // volumes with one in-sync copy left somewhere, and where
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
	keep, err := p.keep(ctx)
	if err != nil {
		return err
	}
	reports, err := store.ListRecords[records.NodeReport](ctx, p.s.env.Store, records.NodeReportPrefix)
	if err != nil {
		return err
	}
	p.notice(disks, alive, reports)
	w := &world{view: view, disks: disks, alive: alive, dead: p.deadNow(view, disks), keep: keep}
	list := plan(w)
	p.alarm(ctx, list)
	p.watermarks(view)
	p.lastCopies(ctx, view)
	rebuilds, moves := running(view)
	started, flattening := maintained(view, alive)
	var all error
	for _, r := range admit(list, rebuilds, moves) {
		key, now := r.key(), p.s.env.Clock.Now()
		if t, ok := p.asked[key]; ok && now.Sub(t) < askAgain {
			continue
		}
		mayStart := started < maxMaintenance || r.copies <= 1
		if r.flatten { // a clone only has to be copied: repairs come first
			others := started + flattening
			if _, up := alive[r.vol.Own.Node]; up && r.vol.Own.Purpose == repl.PurposeMaintenance {
				others-- // itself: its writer may be dead
			}
			mayStart = others < maxMaintenance
		}
		maintenance, err := p.do(ctx, w, r, mayStart)
		if maintenance && r.flatten {
			flattening++
		} else if maintenance {
			started++
		}
		if errs.Kind(err) != errs.Conflict { // it only comes too early
			p.asked[key] = now
			all = errors.Join(all, err)
		}
	}
	return all
}

// keep maps VMs to the nodes where they run: these keep their local copies.
func (p *planner) keep(ctx context.Context) (map[ids.ID]ids.ID, error) {
	vms, err := store.List[model.VM](ctx, p.s.env.Store)
	if err != nil {
		return nil, err
	}
	out := map[ids.ID]ids.ID{}
	for _, vm := range vms {
		pl, err := records.Placement(ctx, p.s.env.Store, vm.ID)
		if err != nil {
			return nil, err
		}
		out[vm.ID] = pl.Value.Node
	}
	return out, nil
}

// notice keeps since when disks are dead and nodes are down; a node that says that its
// storage process does not answer serves its copies as little as one that is off. A new
// holder of the office begins to count anew.
func (p *planner) notice(disks []*model.Disk, alive map[ids.ID]store.Session, reports map[string]store.Record[records.NodeReport]) {
	since := func(m map[ids.ID]clock.Instant, id ids.ID, is bool) {
		if !is {
			delete(m, id)
		} else if _, known := m[id]; !known {
			m[id] = p.s.env.Clock.Now()
		}
	}
	for _, d := range disks {
		_, up := alive[d.Spec.Node]
		since(p.dead, d.ID, up && (d.Status.State == model.DiskFailed || d.Status.State == model.DiskMissing))
		r := reports[records.NodeReportKey(d.Spec.Node)]
		since(p.down, d.Spec.Node, !up || r.Revision != 0 && !r.Value.Storage)
	}
}

// deadNow returns the disks that are rebuilt elsewhere: they are dead for a
// while, or their node is, for as long as the pool wants to wait for it.
func (p *planner) deadNow(view *pool.View, disks []*model.Disk) map[ids.ID]bool {
	out := map[ids.ID]bool{}
	now := p.s.env.Clock.Now()
	for id, since := range p.dead {
		if now.Sub(since) >= deadFor {
			out[id] = true
		}
	}
	after := map[ids.ID]time.Duration{}
	for _, x := range view.Pools {
		after[x.ID] = cmp.Or(x.Spec.RebuildAfter, model.DefaultRebuildAfter)
	}
	for _, d := range disks {
		since, down := p.down[d.Spec.Node]
		if down && view.Replaced(d.Spec.Node) && now.Sub(since) >= deadFor {
			out[d.ID] = true
		}
		if wait, in := after[d.Spec.Pool]; down && in && now.Sub(since) >= wait {
			out[d.ID] = true
		}
	}
	return out
}

// alarm tells once of each volume whose copies cannot be rebuilt.
func (p *planner) alarm(ctx context.Context, list []repair) {
	now := map[string]bool{}
	for _, r := range list {
		if r.stuck == "" {
			continue
		}
		key := r.vol.ID.String() + r.stuck
		now[key] = true
		if !p.told[key] {
			p.s.env.Events.Emit("error", "volume "+p.s.nameOf(ctx, r.vol.ID), fmt.Sprintf("stays at %d of %d copies: %s", r.copies, r.vol.Cfg.Copies, r.stuck))
		}
	}
	p.told = now
}

// watermarks tells when a pool passes 75, 85 and 95 % of what it can hold, up or
// down. A new holder of the office tells of a pool that is above one.
func (p *planner) watermarks(view *pool.View) {
	for _, x := range view.Pools {
		c := view.Capacity(x)
		now := place.LevelOf(c.Percent())
		was := cmp.Or(p.level[x.ID], place.LevelOK)
		p.level[x.ID] = now
		if now == was {
			continue
		}
		level := map[place.Level]string{place.LevelOK: "info", place.LevelFilling: "info", place.LevelHigh: "warn", place.LevelCritical: "error"}[now]
		p.s.env.Events.Emit(level, "pool "+x.Name, fmt.Sprintf("is %d %% full (%s): %s of %s used, the fullest disk at %d %% of what guests may use; at 100 %% machines are paused until there is space",
			c.Percent(), now, c.Used, c.Usable, c.Fullest))
	}
}

// lastCopies tells when the last in-sync copy of a part of a volume is alone, and when
// it is no more. A new holder of the office tells of those that are.
func (p *planner) lastCopies(ctx context.Context, view *pool.View) {
	now := alone(view)
	for _, id := range sortedKeys(now) {
		if _, told := p.alone[id]; !told {
			p.s.env.Events.Emit("error", "volume "+p.s.nameOf(ctx, id), "has one in-sync copy left, "+now[id]+": every write is on its disk before it is answered; the next fault there stops the volume")
		}
	}
	for _, id := range sortedKeys(p.alone) {
		if _, still := now[id]; !still && view.Volumes[id] != nil {
			p.s.env.Events.Emit("info", "volume "+p.s.nameOf(ctx, id), "has more than one in-sync copy again")
		}
	}
	p.alone = now
}

// alone lists the volumes of several copies of which a segment has one in-sync copy,
// and where that is.
func alone(view *pool.View) map[ids.ID]string {
	out := map[ids.ID]string{}
	for id, v := range view.Volumes {
		if v.Cfg.Copies < 2 || v.Cfg.State != repl.VolumeLive {
			continue
		}
		for k := range v.Seg.Map {
			if isr := v.ISR(k); len(isr) == 1 {
				out[id] = fmt.Sprintf("on %s of %s", view.Names.DiskName(isr[0]), view.Names.NodeName(view.Names.DiskNode[isr[0]]))
				break
			}
		}
	}
	return out
}

// maintained counts the maintenance writers that are at work: those that repair, and
// those that only flatten a clone.
func maintained(view *pool.View, alive map[ids.ID]store.Session) (repairing, flattening int) {
	for _, v := range view.Volumes {
		if _, up := alive[v.Own.Node]; !up || v.Own.Purpose != repl.PurposeMaintenance {
			continue
		}
		if len(v.Own.Out) > 0 {
			repairing++
		} else if !v.Cfg.Parent.IsZero() {
			flattening++
		}
	}
	return repairing, flattening
}

// do asks the volume's writer, or opens a maintenance writer.
func (p *planner) do(ctx context.Context, w *world, r repair, mayStart bool) (started bool, err error) {
	if len(r.replace) == 0 && r.stuck != "" {
		return false, nil
	}
	own := r.vol.Own
	_, up := w.alive[own.Node]
	held, err := p.heldByVM(ctx, r.vol)
	if err != nil {
		return false, err
	}
	if held && !up && p.gone(w, own.Node) {
		held = false // nobody restarts it elsewhere: its volumes are repaired like those of a stopped one
	}
	if held {
		if own.Purpose != repl.PurposeVM || !up {
			return false, nil // it is starting or being recovered: its guard repairs what is out
		}
		for _, x := range r.replace {
			path := fmt.Sprintf("/v1/nodes/%s/vms/%s/replace-disk", own.Node, r.vol.Cfg.VM)
			req := guardctl.ReplaceDiskRequest{Volume: r.vol.ID, Old: x.Old, New: x.New, Node: x.Node, Segments: x.Segments, Live: x.Live}
			if err := p.s.env.Ask(ctx, own.Node, http.MethodPost, path, req, nil); err != nil {
				return false, p.say(w.view, r, x, err)
			}
			p.tell(ctx, w.view, r, x)
		}
		return false, nil
	}
	if st, err := p.s.WriterStatus(ctx, r.vol.ID); err == nil && !final(st.Phase) {
		for _, x := range r.replace {
			if err := p.s.askReplace(ctx, own.Node, r.vol.ID, x); err != nil {
				return false, p.say(w.view, r, x, err)
			}
			p.tell(ctx, w.view, r, x)
		}
		return false, nil
	}
	if !mayStart {
		return false, errs.New(errs.Conflict, "repair volume %s: enough others are under repair", r.vol.ID)
	}
	node, ok := nodeWithCopy(w.view, w.alive, r.vol)
	if !ok {
		return false, nil
	}
	req := WriterRequest{Purpose: repl.PurposeMaintenance, Replace: r.replace}
	if err := p.s.openOn(ctx, node, r.vol.ID, req); err != nil {
		return false, fmt.Errorf("repair volume %s: %w", r.vol.ID, err)
	}
	for _, x := range r.replace {
		p.tell(ctx, w.view, r, x)
	}
	return true, nil
}

// gone reports whether a node is down for so long that its copies are rebuilt.
func (p *planner) gone(w *world, node ids.ID) bool {
	for _, d := range w.disks {
		if d.Spec.Node == node && w.dead[d.ID] {
			return true
		}
	}
	return false
}

// heldByVM reports whether the volume's VM is placed on a node.
func (p *planner) heldByVM(ctx context.Context, v *repl.VolumeRecord) (bool, error) {
	if v.Cfg.VM.IsZero() {
		return false, nil
	}
	pl, err := records.Placement(ctx, p.s.env.Store, v.Cfg.VM)
	return !pl.Value.Node.IsZero(), err
}

func (p *planner) tell(ctx context.Context, view *pool.View, r repair, x volumectl.Replace) {
	level, text := "warn", "rebuilds the copy of %s on %s"
	switch {
	case x.New.IsZero():
		p.s.env.Events.Emit("warn", "volume "+p.s.nameOf(ctx, r.vol.ID), "moves nothing to "+view.Names.DiskName(x.Old)+": it is dead")
		return
	case x.Live:
		level, text = "info", "moves a copy from %s to %s"
	}
	p.s.env.Events.Emit(level, "volume "+p.s.nameOf(ctx, r.vol.ID), fmt.Sprintf(text, view.Names.DiskName(x.Old), view.Names.DiskName(x.New)))
}

func (p *planner) say(view *pool.View, r repair, x volumectl.Replace, err error) error {
	return fmt.Errorf("give volume %s a copy on %s for %s: %w", r.vol.ID, view.Names.DiskName(x.New), view.Names.DiskName(x.Old), err)
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
