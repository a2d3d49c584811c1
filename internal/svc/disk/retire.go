package disk

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"roseau/internal/api"
	"roseau/internal/base/errs"
	"roseau/internal/base/ids"
	"roseau/internal/base/size"
	"roseau/internal/core/place"
	"roseau/internal/core/repl"
	"roseau/internal/model"
	"roseau/internal/store"
	"roseau/internal/svc"
	"roseau/internal/svc/pool"
	"roseau/internal/svc/records"
	"roseau/internal/svc/task"
)

// Reasons of a retired disk's state.
const (
	retiring = "being emptied"
	retired  = "empty: nothing is on it any more"
)

// RetireRequest is the body of POST /v1/disks/{ref}/retire.
type RetireRequest struct {
	Cancel bool `json:"cancel,omitempty" doc:"use the disk again"`
}

func (s *Service) retireRoutes(r *api.Router) {
	huma.Register(r, api.Op("retire-disk", "POST", "/v1/disks/{ref}/retire", "Empty a disk: what it holds moves to others, nothing new comes"), func(ctx context.Context, in *struct {
		api.Ref
		Body RetireRequest
	}) (*api.AcceptTask, error) {
		return api.Accepted(s.Retire(ctx, in.Ref.Ref, in.Body))
	})
	s.replaceRoutes(r)
	huma.Register(r, api.Op("remove-disk", "DELETE", "/v1/disks/{ref}", "Give a disk back that holds nothing: it is wiped and forgotten"), func(ctx context.Context, in *api.Ref) (*api.AcceptTask, error) {
		return api.Accepted(s.Remove(ctx, in.Ref))
	})
}

// Retire starts the task that empties a disk.
func (s *Service) Retire(ctx context.Context, ref string, req RetireRequest) (*model.Task, error) {
	d, err := store.Get[model.Disk](ctx, s.env.Store, ref)
	if err != nil {
		return nil, err
	}
	if req.Cancel {
		if !d.Spec.Retire {
			return nil, errs.New(errs.Conflict, "retire disk %s: it is not being retired", d.Name)
		}
		return s.env.Tasks.Start(ctx, "disk retire "+d.Name+" --cancel", func(ctx context.Context, _ *task.Handle) (string, error) {
			_, err := store.Update(ctx, s.env.Store, d.ID, func(d *model.Disk) error {
				d.Spec.Retire, d.Spec.ReplacedBy = false, ids.ID{}
				if d.Status.State == model.DiskRetired {
					d.Status.State, d.Status.Reason = model.DiskActive, ""
				}
				return nil
			})
			return "disk " + d.Name + " is used again", err
		})
	}
	if err := s.mayRetire(ctx, d, nil); err != nil {
		return nil, err
	}
	return s.env.Tasks.Start(ctx, "disk retire "+d.Name, func(ctx context.Context, h *task.Handle) (string, error) {
		return s.empty(ctx, h, d, ids.ID{})
	})
}

// mayRetire refuses if the copies of what is on the disk would have no place. by
// is a disk that joins the pool for this; nil: none.
func (s *Service) mayRetire(ctx context.Context, d, by *model.Disk) error {
	if d.Spec.Pool.IsZero() {
		return nil
	}
	w, err := s.readWorld(ctx, d)
	if err != nil || w.pool == nil {
		return err
	}
	return w.mayRetire(d, by)
}

// world is what retiring or replacing a disk is decided by.
type world struct {
	pool    *model.Pool // the disk's; nil: it is deleted
	all     []*model.Disk
	domain  map[ids.ID]string // failure domain of each disk, by the pool's rule
	volumes map[ids.ID]*repl.VolumeRecord
}

func (s *Service) readWorld(ctx context.Context, d *model.Disk) (*world, error) {
	view, err := pool.ReadView(ctx, s.env.Store)
	if err != nil {
		return nil, err
	}
	w := &world{volumes: view.Volumes, domain: map[ids.ID]string{}}
	if w.all, err = store.List[model.Disk](ctx, s.env.Store); err != nil {
		return nil, err
	}
	i := slices.IndexFunc(view.Pools, func(p *model.Pool) bool { return p.ID == d.Spec.Pool })
	if i < 0 {
		return w, nil
	}
	w.pool = view.Pools[i]
	for _, o := range w.all {
		w.domain[o.ID] = view.Domain(w.pool, o)
	}
	return w, nil
}

// mayRetire is the decision: as many failure domains with disks as copies must be
// left, and room for what the disk holds.
func (w *world) mayRetire(d, by *model.Disk) error {
	left, were := map[string]bool{}, map[string]bool{}
	for _, o := range w.all {
		if o.Spec.Pool == w.pool.ID {
			were[w.domain[o.ID]] = true
		}
	}
	var free, room size.Bytes
	for _, o := range w.all {
		if o.ID == d.ID || o.Status.State != model.DiskActive || o.Spec.Retire || o.Spec.Pool != w.pool.ID && (by == nil || o.ID != by.ID) {
			continue
		}
		left[w.domain[o.ID]] = true
		n := max(0, o.Status.Data-o.Status.Used)
		free += n
		// With no more domains than copies every other one holds a copy of all already.
		if w.domain[o.ID] == w.domain[d.ID] || len(were) > w.pool.Spec.Copies {
			room += n
		}
	}
	what, hint := "retire disk "+d.Name, fmt.Sprintf("claim another disk beside it first: `roseau disk list`, `roseau disk claim`, then `roseau disk replace %s NEW`", d.Name)
	if by != nil {
		what, hint = "replace disk "+d.Name+" by "+by.Name, fmt.Sprintf("name a disk in the failure domain of %s: `roseau disk claim` takes a blank one for the cluster", d.Name)
	}
	if len(left) < w.pool.Spec.Copies {
		return errs.New(errs.Conflict, "%s: without %s pool %s has disks in %d failure domains, and keeps %d copies", what, d.Name, w.pool.Name, len(left), w.pool.Spec.Copies).WithHint("%s", hint)
	}
	if need := w.holds(d); room < need {
		return errs.New(errs.Exhausted, "%s: %s holds %s, and %s are free where its copies may go (%s in the pool)", what, d.Name, need, room, free).
			WithHint("claim another disk beside it first, or delete volumes")
	}
	return nil
}

// holds is how much is on a disk. One that is dead does not say it any more: then it
// is estimated by what those hold that have the other copies, rather too low, for a
// refusal in error leaves copies missing.
func (w *world) holds(d *model.Disk) size.Bytes {
	if d.Status.Data > 0 {
		return d.Status.Used
	}
	mean := map[ids.ID]size.Bytes{} // of a segment on each disk that serves
	for _, o := range w.all {
		if n := segmentsOn(w.volumes, o.ID); n > 0 && o.Status.Data > 0 {
			mean[o.ID] = min(o.Status.Used/size.Bytes(n), place.SegmentBytes)
		}
	}
	var sum size.Bytes
	for _, v := range w.volumes {
		for k := range v.Seg.Map {
			row := v.Seg.Row(k)
			if !slices.Contains(row, d.ID) {
				continue
			}
			least := size.Bytes(place.SegmentBytes)
			known := false
			for _, o := range row {
				if m, ok := mean[o]; ok {
					least, known = min(least, m), true
				}
			}
			if known {
				sum += least
			}
		}
	}
	return sum
}

// dead tells whether a disk's copies are rebuilt from the others: it serves no more.
func dead(d *model.Disk) bool {
	return d.Status.State == model.DiskFailed || d.Status.State == model.DiskMissing
}

// empty marks a disk and waits until nothing is on it, and what was made for it is in
// sync.
func (s *Service) empty(ctx context.Context, h *task.Handle, d *model.Disk, by ids.ID) (string, error) {
	if _, err := store.Update(ctx, s.env.Store, d.ID, func(d *model.Disk) error {
		d.Spec.Retire, d.Spec.ReplacedBy = true, by
		if d.Status.State == model.DiskActive {
			d.Status.State, d.Status.Reason = model.DiskRetired, retiring
		}
		return nil
	}); err != nil {
		return "", err
	}
	text := "is being retired: what it holds moves to other disks"
	if dead(d) {
		text = "is being retired: what it held is rebuilt on other disks"
	}
	s.env.Events.Emit("info", "disk "+d.Name, text)
	total, rebuilt := 0, false
	err := svc.WaitFor(ctx, time.Second, func(ctx context.Context) (bool, error) {
		now, err := store.GetID[model.Disk](ctx, s.env.Store, d.ID)
		if err != nil {
			return false, ignoreAway(err)
		}
		if !now.Spec.Retire {
			return false, errs.New(errs.Conflict, "retire disk %s: cancelled", d.Name)
		}
		vols, err := records.Volumes(ctx, s.env.Store)
		if err != nil {
			return false, ignoreAway(err)
		}
		left, joins := segmentsOn(vols, d.ID), 0
		if rebuilt = dead(now); rebuilt {
			joins = joining(vols, d.Spec.Pool)
		}
		total = max(total, left+joins)
		switch {
		case left > 0 && rebuilt:
			h.Phase("rebuilds its copies on other disks")
		case left > 0:
			h.Phase("moves its copies to other disks")
		case joins > 0:
			h.Phase("waits for the new copies to be in sync")
		}
		h.Progress(int64(total-left-joins), int64(total), "segments")
		return left+joins == 0, nil
	})
	if err != nil {
		return "", err
	}
	if _, err := store.Update(ctx, s.env.Store, d.ID, func(d *model.Disk) error {
		if d.Status.State == model.DiskRetired {
			d.Status.Reason = retired
		}
		return nil
	}); err != nil {
		return "", err
	}
	s.env.Events.Emit("info", "disk "+d.Name, "is retired: nothing is on it any more")
	if rebuilt {
		return fmt.Sprintf("disk %s is retired: %d segments rebuilt, all copies are in sync; `roseau disk remove %s` forgets it", d.Name, total, d.Name), nil
	}
	return fmt.Sprintf("disk %s is retired: %d segments moved, nothing is on it any more; `roseau disk remove %s` gives it back", d.Name, total, d.Name), nil
}

// joining counts the copies in a pool that are made for lost ones and not in sync yet.
func joining(vols map[ids.ID]*repl.VolumeRecord, pool ids.ID) (n int) {
	for _, v := range vols {
		if v.Cfg.Pool != pool {
			continue
		}
		for _, o := range v.Own.Out {
			for _, f := range o.Fill {
				if f.Drop.IsZero() {
					n++
				}
			}
		}
	}
	return n
}

// ignoreAway lets a task go on while etcd is away.
func ignoreAway(err error) error {
	if errors.Is(err, errs.NotFound) {
		return err
	}
	return nil
}

// Remove starts the task that gives a disk back.
func (s *Service) Remove(ctx context.Context, ref string) (*model.Task, error) {
	d, err := store.Get[model.Disk](ctx, s.env.Store, ref)
	if err != nil {
		return nil, err
	}
	vols, err := records.Volumes(ctx, s.env.Store)
	if err != nil {
		return nil, err
	}
	if n := segmentsOn(vols, d.ID); n > 0 {
		return nil, errs.New(errs.Conflict, "remove disk %s: it holds copies of %d segments", d.Name, n).
			WithHint("`roseau disk retire %s` moves them to other disks first", d.Name)
	}
	return s.env.Tasks.Start(ctx, "disk remove "+d.Name, func(ctx context.Context, h *task.Handle) (string, error) {
		// Out of its pool first: nothing is put on it any more.
		if _, err := store.Update(ctx, s.env.Store, d.ID, func(d *model.Disk) error { d.Spec.Retire, d.Spec.Pool = true, ids.ID{}; return nil }); err != nil {
			return "", err
		}
		vols, err := records.Volumes(ctx, s.env.Store)
		if err != nil {
			return "", err
		}
		if n := segmentsOn(vols, d.ID); n > 0 {
			return "", errs.New(errs.Conflict, "remove disk %s: %d segments came in between", d.Name, n)
		}
		h.Phase("its node gives it back")
		if err := s.forget(ctx, d); err != nil {
			return "", err
		}
		now, err := store.GetID[model.Disk](ctx, s.env.Store, d.ID)
		if err == nil {
			tx := store.NewTx()
			store.TxDelete(tx, now)
			tx.Delete(records.DiskKey(d.ID))
			_, err = s.env.Store.Commit(ctx, tx)
		}
		if err != nil && !errors.Is(err, errs.NotFound) {
			return "", fmt.Errorf("forget disk %s: %w", d.Name, err)
		}
		if dead(d) {
			s.env.Events.Emit("warn", "disk "+d.Name, "forgotten; it could not be wiped")
			return "disk " + d.Name + " is forgotten; what is on it was not wiped, for it does not serve", nil
		}
		s.env.Events.Emit("warn", "disk "+d.Name, "given back, wiped and forgotten")
		return "disk " + d.Name + " is given back; it is blank", nil
	})
}

func (s *Service) forget(ctx context.Context, d *model.Disk) error {
	if d.Spec.Node == s.env.Node {
		return s.storage.Forget(ctx, d.ID)
	}
	return s.env.Ask(ctx, d.Spec.Node, "POST", "/v1/nodes/"+d.Spec.Node.String()+"/disks/forget", ForgetRequest{d.ID}, nil)
}
