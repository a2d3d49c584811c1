package pool

import (
	"context"
	"fmt"
	"slices"
	"time"

	"roseau/internal/base/errs"
	"roseau/internal/base/ids"
	"roseau/internal/model"
	"roseau/internal/store"
	"roseau/internal/svc/task"
)

// ChangeRequest is the body of PATCH /v1/pools/{ref}: what is absent stays.
type ChangeRequest struct {
	RebuildAfter string `json:"rebuild_after,omitempty" doc:"how long a node must be down before its copies are rebuilt on others: 15m"`
}

// AddRequest is the body of POST /v1/pools/{ref}/disks.
type AddRequest struct {
	Disks []string `json:"disks,omitempty" doc:"names of claimed disks; default: all that are in no pool"`
}

func parseAfter(pool, text string) (time.Duration, error) {
	d, err := time.ParseDuration(text)
	if err != nil || d <= 0 {
		return 0, errs.New(errs.Invalid, "pool %s: rebuild_after is %q, want a duration above 0", pool, text).WithHint("for example 15m")
	}
	return d, nil
}

// Set changes a pool.
func (s *Service) Set(ctx context.Context, ref string, req ChangeRequest) (Info, error) {
	p, err := store.Get[model.Pool](ctx, s.env.Store, ref)
	if err != nil {
		return Info{}, err
	}
	if req.RebuildAfter == "" {
		return Info{}, errs.New(errs.Invalid, "set pool %s: nothing to set", p.Name).WithHint("say rebuild_after")
	}
	d, err := parseAfter(p.Name, req.RebuildAfter)
	if err != nil {
		return Info{}, err
	}
	if _, err := store.Update(ctx, s.env.Store, p.ID, func(p *model.Pool) error { p.Spec.RebuildAfter = d; return nil }); err != nil {
		return Info{}, fmt.Errorf("set pool %s: %w", p.Name, err)
	}
	return s.Get(ctx, p.ID.String())
}

// Add gives a pool more disks: one transaction. Copies move onto them by
// themselves until the pool is even.
func (s *Service) Add(ctx context.Context, ref string, req AddRequest) (*model.Task, error) {
	p, err := store.Get[model.Pool](ctx, s.env.Store, ref)
	if err != nil {
		return nil, err
	}
	what := "add disks to pool " + p.Name
	choose := func(ctx context.Context) ([]*model.Disk, error) {
		disks, _, err := s.choose(ctx, what, p, req.Disks)
		if err == nil && len(disks) == 0 {
			err = errs.New(errs.Conflict, "%s: no claimed disk is free", what).
				WithHint("`roseau disk list`, then `roseau disk claim NODE/PATH`")
		}
		return disks, err
	}
	if _, err := choose(ctx); err != nil {
		return nil, err
	}
	return s.env.Tasks.Start(ctx, "pool add "+p.Name, func(ctx context.Context, h *task.Handle) (string, error) {
		var disks []*model.Disk
		_, err := s.env.Store.Transact(ctx, what, func(tx *store.Tx) (err error) {
			if disks, err = choose(ctx); err != nil {
				return err
			}
			return give(tx, disks, p.ID)
		})
		if err != nil {
			return "", err
		}
		s.env.Events.Emit("info", "pool "+p.Name, "given "+plural(len(disks), "disk"))
		return fmt.Sprintf("pool %s: %s added; copies move onto them by themselves", p.Name, plural(len(disks), "disk")), nil
	})
}

// choose returns the free claimed disks that are named (or all) and how many
// failure domains they are in, or refuses.
func (s *Service) choose(ctx context.Context, what string, p *model.Pool, names []string) ([]*model.Disk, int, error) {
	all, err := store.List[model.Disk](ctx, s.env.Store)
	if err != nil {
		return nil, 0, err
	}
	nodes, err := store.List[model.Node](ctx, s.env.Store)
	if err != nil {
		return nil, 0, err
	}
	byID := map[ids.ID]*model.Node{}
	for _, n := range nodes {
		byID[n.ID] = n
	}
	l := level(p)
	domains := map[string]bool{}
	var out []*model.Disk
	for _, n := range names {
		i := slices.IndexFunc(all, func(d *model.Disk) bool { return d.Name == n || d.ID.String() == n })
		if i < 0 {
			return nil, 0, errs.New(errs.NotFound, "%s: disk %s: not claimed, or does not exist", what, n).WithHint("`roseau disk list`, then `roseau disk claim NODE/PATH`")
		}
		if !all[i].Spec.Pool.IsZero() {
			return nil, 0, errs.New(errs.Conflict, "%s: disk %s: is in a pool already", what, n)
		}
	}
	for _, d := range all {
		if d.Spec.Pool.IsZero() && d.Status.State == model.DiskActive && (len(names) == 0 || slices.Contains(names, d.Name) || slices.Contains(names, d.ID.String())) {
			n := byID[d.Spec.Node]
			if n == nil {
				continue
			}
			key, ok := l.In(n, d.ID)
			if !ok {
				return nil, 0, errs.New(errs.Conflict, "%s: node %s does not say in which %s it stands", what, n.Name, l).
					WithHint("`roseau node set %s --%s NAME`, or --domain node", n.Name, l)
			}
			out = append(out, d)
			domains[key] = true
		}
	}
	if len(out) > maxDisks {
		return nil, 0, errs.New(errs.Invalid, "%s: %d disks at once, at most %d", what, len(out), maxDisks)
	}
	return out, len(domains), nil
}

// tooFew refuses a pool whose copies could not be kept apart.
func tooFew(p *model.Pool, l model.Domain, have int) error {
	if l == model.DomainDisk {
		return errs.New(errs.Exhausted, "pool %s: %s free and claimed, needs %d", p.Name, plural(have, "disk"), p.Spec.Copies).
			WithHint("`roseau disk list`, `roseau disk claim NODE/PATH`; or --copies %d", max(1, have))
	}
	hint := fmt.Sprintf("claim a disk on each of %d %ss: `roseau disk list`, `roseau disk claim NODE/PATH`; or --copies %d", p.Spec.Copies, l, max(1, have))
	if l == model.DomainNode {
		hint += "; on a single machine --domain disk keeps the copies on different disks"
	}
	return errs.New(errs.Exhausted, "pool %s: %s with free claimed disks, needs %d", p.Name, plural(have, string(l)), p.Spec.Copies).WithHint("%s", hint)
}

func plural(n int, word string) string {
	if n == 1 {
		return "1 " + word
	}
	return fmt.Sprintf("%d %ss", n, word)
}
