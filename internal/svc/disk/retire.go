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

// ReplaceRequest is the body of POST /v1/disks/{ref}/replace.
type ReplaceRequest struct {
	New string `json:"new" doc:"name of the claimed disk that takes its place"`
}

func (s *Service) retireRoutes(r *api.Router) {
	huma.Register(r, api.Op("retire-disk", "POST", "/v1/disks/{ref}/retire", "Empty a disk: what it holds moves to others, nothing new comes"), func(ctx context.Context, in *struct {
		api.Ref
		Body RetireRequest
	}) (*api.AcceptTask, error) {
		return api.Accepted(s.Retire(ctx, in.Ref.Ref, in.Body))
	})
	huma.Register(r, api.Op("replace-disk", "POST", "/v1/disks/{ref}/replace", "Put a disk in the place of another"), func(ctx context.Context, in *struct {
		api.Ref
		Body ReplaceRequest
	}) (*api.AcceptTask, error) {
		return api.Accepted(s.Replace(ctx, in.Ref.Ref, in.Body))
	})
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
	if err := s.mayRetire(ctx, d, ids.ID{}); err != nil {
		return nil, err
	}
	return s.env.Tasks.Start(ctx, "disk retire "+d.Name, func(ctx context.Context, h *task.Handle) (string, error) {
		return s.empty(ctx, h, d, ids.ID{})
	})
}

// Replace starts the task that empties a disk, or makes up for a dead one, with
// another disk in its pool.
func (s *Service) Replace(ctx context.Context, ref string, req ReplaceRequest) (*model.Task, error) {
	old, err := store.Get[model.Disk](ctx, s.env.Store, ref)
	if err != nil {
		return nil, err
	}
	n, err := store.Get[model.Disk](ctx, s.env.Store, req.New)
	if err != nil {
		return nil, err
	}
	refuse := func(format string, args ...any) (*model.Task, error) {
		return nil, errs.New(errs.Conflict, "replace disk %s by %s: %s", old.Name, n.Name, fmt.Sprintf(format, args...))
	}
	switch {
	case old.ID == n.ID:
		return refuse("it is the same disk")
	case old.Spec.Pool.IsZero():
		return refuse("%s is in no pool", old.Name)
	case n.Status.State != model.DiskActive:
		return refuse("%s is %s", n.Name, n.Status.State)
	case !n.Spec.Pool.IsZero() && n.Spec.Pool != old.Spec.Pool:
		return refuse("%s is in another pool", n.Name)
	case n.Status.Data-n.Status.Used < old.Status.Used:
		return nil, errs.New(errs.Exhausted, "replace disk %s by %s: %s of data, %s are free there", old.Name, n.Name, old.Status.Used, n.Status.Data-n.Status.Used).
			WithHint("take a larger disk, or `roseau disk retire %s`, which uses all of the pool", old.Name)
	}
	if err := s.mayRetire(ctx, old, n.ID); err != nil {
		return nil, err
	}
	return s.env.Tasks.Start(ctx, fmt.Sprintf("disk replace %s %s", old.Name, n.Name), func(ctx context.Context, h *task.Handle) (string, error) {
		if n.Spec.Pool.IsZero() {
			if _, err := store.Update(ctx, s.env.Store, n.ID, func(d *model.Disk) error { d.Spec.Pool = old.Spec.Pool; return nil }); err != nil {
				return "", err
			}
			h.Logf("disk %s is in the pool now", n.Name)
		}
		return s.empty(ctx, h, old, n.ID)
	})
}

// mayRetire refuses if the copies of what is on the disk would have no place. by
// is a disk that joins the pool for this; zero: none.
func (s *Service) mayRetire(ctx context.Context, d *model.Disk, by ids.ID) error {
	if d.Spec.Pool.IsZero() {
		return nil
	}
	view, err := pool.ReadView(ctx, s.env.Store)
	if err != nil {
		return err
	}
	all, err := store.List[model.Disk](ctx, s.env.Store)
	if err != nil {
		return err
	}
	i := slices.IndexFunc(view.Pools, func(p *model.Pool) bool { return p.ID == d.Spec.Pool })
	if i < 0 {
		return nil
	}
	p := view.Pools[i]
	domain := map[ids.ID]string{}
	for _, o := range all {
		domain[o.ID] = o.Spec.Node.String() // of a disk that joins the pool for this
		if p.Spec.Domain == model.DomainDisk {
			domain[o.ID] = o.ID.String()
		}
	}
	for _, o := range view.Disks[p.ID] {
		domain[o.ID] = o.Domain
	}
	return mayRetire(p, d, all, by, domain)
}

// mayRetire is the decision: as many failure domains with disks as copies must be
// left, and room for what the disk holds.
func mayRetire(p *model.Pool, d *model.Disk, all []*model.Disk, by ids.ID, domain map[ids.ID]string) error {
	left, were := map[string]bool{}, map[string]bool{}
	for _, o := range all {
		if o.Spec.Pool == p.ID {
			were[domain[o.ID]] = true
		}
	}
	var free, room size.Bytes
	for _, o := range all {
		if o.ID == d.ID || o.Status.State != model.DiskActive || o.Spec.Retire || o.Spec.Pool != p.ID && o.ID != by {
			continue
		}
		left[domain[o.ID]] = true
		n := max(0, o.Status.Data-o.Status.Used)
		free += n
		// With no more domains than copies every other one holds a copy of all already.
		if domain[o.ID] == domain[d.ID] || len(were) > p.Spec.Copies {
			room += n
		}
	}
	if len(left) < p.Spec.Copies {
		return errs.New(errs.Conflict, "retire disk %s: without it pool %s has disks in %d failure domains, and keeps %d copies", d.Name, p.Name, len(left), p.Spec.Copies).
			WithHint("claim another disk beside it first: `roseau disk list`, `roseau disk claim`, then `roseau disk replace %s NEW`", d.Name)
	}
	if room < d.Status.Used {
		return errs.New(errs.Exhausted, "retire disk %s: it holds %s, and %s are free where its copies may go (%s in the pool)", d.Name, d.Status.Used, room, free).
			WithHint("claim another disk beside it first, or delete volumes")
	}
	return nil
}

// empty marks a disk and waits until nothing is on it.
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
	s.env.Events.Emit("info", "disk "+d.Name, "is being retired: what it holds moves to other disks")
	total := -1
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
		left := segmentsOn(vols, d.ID)
		total = max(total, left)
		h.Phase("moves its copies to other disks")
		h.Progress(int64(total-left), int64(total), "segments")
		return left == 0, nil
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
	return fmt.Sprintf("disk %s is retired: %d segments moved, nothing is on it any more; `roseau disk remove %s` gives it back", d.Name, total, d.Name), nil
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
			err = store.Delete(ctx, s.env.Store, now)
		}
		if err != nil && !errors.Is(err, errs.NotFound) {
			return "", err
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
