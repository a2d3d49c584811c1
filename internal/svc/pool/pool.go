// Package pool keeps the pools: sets of claimed disks that hold volumes. What a
// pool can hold and holds is computed from its disks when somebody asks, so it
// is never out of date.
package pool

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

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
	"roseau/internal/svc/records"
	"roseau/internal/svc/task"
)

// Service has the operations on pools.
type Service struct{ env *svc.Env }

// New returns the service.
func New(env *svc.Env) *Service { return &Service{env: env} }

// Info is a pool with its disks.
type Info struct {
	model.Pool
	Raw     size.Bytes `json:"raw"`      // of all disks
	RawUsed size.Bytes `json:"raw_used"` // allocated on them, all copies
	Reserve size.Bytes `json:"reserve"`  // raw bytes kept free for rebuilds
	// Percent is how full it is: as a whole, or its fullest disk, whichever is more;
	// at 100 writes that need new space wait.
	Percent int         `json:"percent"`
	Level   place.Level `json:"level"`
	// Copies says in one line what is being copied: balanced, moving, rebuilding,
	// degraded.
	Copies  string   `json:"copies"`
	Members []Member `json:"members"`
	Volumes int      `json:"volumes"`
	// Scrub is the last one, or the one that runs; nil: the first is still to come.
	Scrub *records.PoolScrub `json:"scrub,omitempty"`
}

// Member is a disk of a pool.
type Member struct {
	Name  string          `json:"name"`
	Node  string          `json:"node"`
	State model.DiskState `json:"state"`
	Data  size.Bytes      `json:"data"`
	Used  size.Bytes      `json:"used"`
	Limit size.Bytes      `json:"limit"` // of Data, for guests; the rest is for rebuilds
}

// CreateRequest is the body of POST /v1/pools.
type CreateRequest struct {
	Name   string `json:"name"`
	Copies int    `json:"copies,omitempty" doc:"1 to 3; default 3"`
	Domain string `json:"domain,omitempty" enum:"disk,node,chassis,rack,site" doc:"failure domain: two copies of a block never share one; default node"`
	// RebuildAfter is a duration: "15m".
	RebuildAfter string   `json:"rebuild_after,omitempty" doc:"how long a node must be down before its copies are rebuilt on others; default 15m"`
	MinISR       int      `json:"min_isr,omitempty" doc:"1 or 2; default 1: the last copy goes on"`
	Disks        []string `json:"disks,omitempty" doc:"names of claimed disks; default: all that are in no pool"`
}

// Routes adds the operations.
func (s *Service) Routes(r *api.Router) {
	huma.Register(r, api.Op("list-pools", "GET", "/v1/pools", "List pools"), func(ctx context.Context, _ *struct{}) (*api.Body[[]Info], error) {
		return api.OK(s.List(ctx))
	})
	huma.Register(r, api.Op("get-pool", "GET", "/v1/pools/{ref}", "Show a pool"), func(ctx context.Context, in *api.Ref) (*api.Body[Info], error) {
		return api.OK(s.Get(ctx, in.Ref))
	})
	huma.Register(r, api.Op("create-pool", "POST", "/v1/pools", "Create a pool"), func(ctx context.Context, in *struct{ Body CreateRequest }) (*api.AcceptTask, error) {
		return api.Accepted(s.Create(ctx, in.Body))
	})
	huma.Register(r, api.Op("set-pool", "PATCH", "/v1/pools/{ref}", "Change a pool"), func(ctx context.Context, in *struct {
		api.Ref
		Body ChangeRequest
	}) (*api.Body[Info], error) {
		return api.OK(s.Set(ctx, in.Ref.Ref, in.Body))
	})
	huma.Register(r, api.Op("add-disks", "POST", "/v1/pools/{ref}/disks", "Add claimed disks to a pool"), func(ctx context.Context, in *struct {
		api.Ref
		Body AddRequest
	}) (*api.AcceptTask, error) {
		return api.Accepted(s.Add(ctx, in.Ref.Ref, in.Body))
	})
	huma.Register(r, api.Op("delete-pool", "DELETE", "/v1/pools/{ref}", "Delete an empty pool"), func(ctx context.Context, in *api.Ref) (*api.AcceptTask, error) {
		return api.Accepted(s.Delete(ctx, in.Ref))
	})
}

// View is what placement needs of the pools: their disks with what is promised
// on them.
type View struct {
	Pools   []*model.Pool
	Disks   map[ids.ID][]place.Disk // by pool
	Volumes map[ids.ID]*repl.VolumeRecord
	Names   records.Names
	members map[ids.ID][]*model.Disk
	nodes   []*model.Node
}

// Replaced reports whether another node takes the place of a node.
func (v *View) Replaced(node ids.ID) bool {
	for _, n := range v.nodes {
		if n.ID == node {
			return !n.Spec.ReplacedBy.IsZero()
		}
	}
	return false
}

// Rule is how a pool places copies.
func Rule(p *model.Pool) place.Rule {
	return place.Rule{Pool: p.Name, Copies: p.Spec.Copies, Level: string(level(p))}
}

func level(p *model.Pool) model.Domain {
	if p.Spec.Domain == "" {
		return model.DomainNode
	}
	return p.Spec.Domain
}

// domain is the key of a disk's failure domain. Nodes that do not say where they
// stand count as standing together: two copies there might fail together.
func (v *View) domain(d *model.Disk, l model.Domain) string {
	for _, n := range v.nodes {
		if n.ID == d.Spec.Node {
			key, _ := l.In(n, d.ID)
			return key
		}
	}
	return d.Spec.Node.String()
}

// Domain is the key of a disk's failure domain by a pool's rule, also if it is not in
// that pool.
func (v *View) Domain(p *model.Pool, d *model.Disk) string { return v.domain(d, p.Spec.Domain) }

// ReadView reads pools, disks and volumes.
func ReadView(ctx context.Context, s *store.Store) (*View, error) {
	v := &View{Disks: map[ids.ID][]place.Disk{}, members: map[ids.ID][]*model.Disk{}}
	disks, err := store.List[model.Disk](ctx, s)
	if err != nil {
		return nil, err
	}
	nodes, err := store.List[model.Node](ctx, s)
	if err != nil {
		return nil, err
	}
	if v.Pools, err = store.List[model.Pool](ctx, s); err != nil {
		return nil, err
	}
	if v.Volumes, err = records.Volumes(ctx, s); err != nil {
		return nil, err
	}
	alive, err := store.AliveNodes(ctx, s)
	if err != nil {
		return nil, err
	}
	v.Names = records.NewNames(disks, nodes)
	level := map[ids.ID]model.Domain{}
	for _, p := range v.Pools {
		level[p.ID] = p.Spec.Domain
	}
	v.nodes = nodes
	promised := map[ids.ID]size.Bytes{}
	for _, vol := range v.Volumes {
		for _, row := range vol.Seg.Map {
			for _, i := range row {
				if int(i) < len(vol.Seg.Disks) {
					promised[vol.Seg.Disks[i]] += place.SegmentBytes
				}
			}
		}
	}
	for _, d := range disks {
		if d.Spec.Pool.IsZero() {
			continue
		}
		p := place.Disk{ID: d.ID, Name: d.Name, Node: d.Spec.Node, NodeName: v.Names.NodeName(d.Spec.Node), Data: d.Status.Data, Used: d.Status.Used, Promised: promised[d.ID]}
		p.Domain = v.domain(d, level[d.Spec.Pool])
		if d.Status.State != model.DiskActive {
			p.Unusable = string(d.Status.State)
		} else if _, up := alive[d.Spec.Node]; !up {
			p.Unusable = "on a node that is down"
		}
		v.Disks[d.Spec.Pool] = append(v.Disks[d.Spec.Pool], p)
		v.members[d.Spec.Pool] = append(v.members[d.Spec.Pool], d)
	}
	return v, nil
}

// Pool finds a pool by name; the empty name stands for the only one there is.
func (v *View) Pool(name string) (*model.Pool, error) {
	if name == "" {
		switch len(v.Pools) {
		case 0:
			return nil, errs.New(errs.NotFound, "choose a pool: there is none").WithHint("`roseau disk claim`, then `roseau pool create NAME`")
		case 1:
			return v.Pools[0], nil
		}
		return nil, errs.New(errs.Invalid, "choose a pool: there are %d", len(v.Pools)).WithHint("name one with --pool")
	}
	for _, p := range v.Pools {
		if p.Name == name || p.ID.String() == name {
			return p, nil
		}
	}
	return nil, errs.New(errs.NotFound, "read pool %s: not found", name).WithHint("`roseau pool list` shows what there is")
}

// Capacity computes what a pool can hold.
func (v *View) Capacity(p *model.Pool) place.Capacity {
	return place.PoolCapacity(p.Spec.Copies, v.standing(p))
}

// standing lists the disks of a pool without those that are retired; a node that
// is down for a while takes nothing away.
func (v *View) standing(p *model.Pool) []place.Disk {
	var ds []place.Disk
	for _, d := range v.Disks[p.ID] {
		switch d.Unusable {
		case string(model.DiskRetired):
			continue
		case string(model.DiskFailed), string(model.DiskMissing):
		default:
			d.Unusable = ""
		}
		ds = append(ds, d)
	}
	return ds
}

// Limits returns how much guests may use of each disk of a pool.
func (v *View) Limits(p *model.Pool) map[ids.ID]size.Bytes {
	return place.Limits(p.Spec.Copies, v.standing(p))
}

// Fits refuses a new volume that can never be filled.
func (v *View) Fits(p *model.Pool, what string, b size.Bytes) error {
	c := v.Capacity(p)
	if b > c.Usable {
		return errs.New(errs.Exhausted, "%s: %s is larger than pool %s, which can hold %s", what, b, p.Name, c.Usable).
			WithHint("add disks, or make it smaller; %s of raw space are kept for rebuilds", c.Reserve)
	}
	if c.Used >= c.Usable {
		return errs.New(errs.Exhausted, "%s: pool %s is full: %s of %s used", what, p.Name, c.Used, c.Usable).
			WithHint("delete volumes, or claim more disks")
	}
	return nil
}

func (v *View) info(p *model.Pool, volumes []*model.Volume) Info {
	c := v.Capacity(p)
	i := Info{Pool: *p, Raw: c.Raw, RawUsed: c.RawUsed, Reserve: c.Reserve, Percent: c.Percent(), Level: place.LevelOf(c.Percent()), Copies: v.copying(p), Members: []Member{}}
	limits := v.Limits(p)
	i.Status = model.PoolStatus{Disks: len(v.members[p.ID]), Size: c.Usable, Used: c.Used}
	for _, d := range v.members[p.ID] {
		i.Members = append(i.Members, Member{Name: d.Name, Node: v.Names.NodeName(d.Spec.Node), State: d.Status.State, Data: d.Status.Data, Used: d.Status.Used, Limit: limits[d.ID]})
	}
	for _, vol := range volumes {
		if vol.Spec.Pool == p.Name {
			i.Volumes++
			i.Status.Promised += vol.Spec.Size
		}
	}
	return i
}

// List returns all pools.
func (s *Service) List(ctx context.Context) ([]Info, error) {
	v, err := ReadView(ctx, s.env.Store.Relaxed())
	if err != nil {
		return nil, err
	}
	volumes, err := store.List[model.Volume](ctx, s.env.Store.Relaxed())
	if err != nil {
		return nil, err
	}
	out := make([]Info, 0, len(v.Pools))
	scrubs, err := store.ListRecords[records.PoolScrub](ctx, s.env.Store.Relaxed(), records.PoolScrubPrefix)
	if err != nil {
		return nil, err
	}
	for _, p := range v.Pools {
		i := v.info(p, volumes)
		if r, ok := scrubs[records.PoolScrubKey(p.ID)]; ok {
			i.Scrub = &r.Value
		}
		out = append(out, i)
	}
	return out, nil
}

// Get returns one pool.
func (s *Service) Get(ctx context.Context, ref string) (Info, error) {
	all, err := s.List(ctx)
	if err != nil {
		return Info{}, err
	}
	for _, i := range all {
		if i.Name == ref || i.ID.String() == ref {
			return i, nil
		}
	}
	return Info{}, errs.New(errs.NotFound, "read pool %s: not found", ref).WithHint("`roseau pool list` shows what there is")
}

// maxDisks bounds the disks of one transaction (etcd takes 128 operations).
const maxDisks = 60

// Create makes a pool of disks: one transaction.
func (s *Service) Create(ctx context.Context, req CreateRequest) (*model.Task, error) {
	p := &model.Pool{Meta: model.Meta{ID: ids.New(), Name: req.Name}, Spec: model.PoolSpec{Copies: req.Copies, MinISR: req.MinISR, Domain: model.Domain(req.Domain)}}
	if p.Spec.Copies == 0 {
		p.Spec.Copies = 3
	}
	if p.Spec.MinISR == 0 {
		p.Spec.MinISR = 1
	}
	if req.RebuildAfter != "" {
		d, err := parseAfter(p.Name, req.RebuildAfter)
		if err != nil {
			return nil, err
		}
		p.Spec.RebuildAfter = d
	}
	if err := p.Validate(); err != nil {
		return nil, err
	}
	if _, err := store.Get[model.Pool](ctx, s.env.Store, p.Name); err == nil {
		return nil, errs.New(errs.Conflict, "create pool %s: the name is taken", p.Name).WithHint("`roseau pool list`")
	}
	if _, err := s.chooseFor(ctx, p, req.Disks); err != nil {
		return nil, err
	}
	return s.env.Tasks.Start(ctx, "pool create "+p.Name, func(ctx context.Context, h *task.Handle) (string, error) {
		var disks []*model.Disk
		_, err := s.env.Store.Transact(ctx, "create pool "+p.Name, func(tx *store.Tx) (err error) { // a disk's health may be written meanwhile
			if disks, err = s.chooseFor(ctx, p, req.Disks); err != nil {
				return err
			}
			return errors.Join(store.TxCreate(tx, s.env.Store, p), give(tx, disks, p.ID))
		})
		if err != nil {
			return "", err
		}
		v, err := ReadView(ctx, s.env.Store)
		if err != nil {
			return "", err
		}
		c := v.Capacity(p)
		s.env.Events.Emit("info", "pool "+p.Name, fmt.Sprintf("created of %d disks", len(disks)))
		return fmt.Sprintf("pool %s: %d disks, %d copies, holds %s (%s raw, %s kept for rebuilds)", p.Name, len(disks), p.Spec.Copies, c.Usable, c.Raw, c.Reserve), nil
	})
}

// chooseFor chooses the disks of a new pool: enough for its copies, or it refuses.
func (s *Service) chooseFor(ctx context.Context, p *model.Pool, names []string) ([]*model.Disk, error) {
	disks, domains, err := s.choose(ctx, "create pool "+p.Name, p, names)
	if err == nil && domains < p.Spec.Copies {
		err = tooFew(p, level(p), domains)
	}
	return disks, err
}

// give adds to tx that disks belong to a pool; the zero id: to none.
func give(tx *store.Tx, disks []*model.Disk, pool ids.ID) error {
	for _, d := range disks {
		d.Spec.Pool = pool
		if err := store.TxPut(tx, d); err != nil {
			return err
		}
	}
	return nil
}

// refuseUsed refuses to delete a pool that holds volumes.
func (s *Service) refuseUsed(ctx context.Context, p *model.Pool) error {
	volumes, err := store.List[model.Volume](ctx, s.env.Store)
	if err != nil {
		return err
	}
	var in []string
	for _, v := range volumes {
		if v.Spec.Pool == p.Name {
			in = append(in, v.Name)
		}
	}
	if len(in) > 0 {
		return errs.New(errs.Conflict, "delete pool %s: it holds %s", p.Name, plural(len(in), "volume")).
			WithHint("delete them first: %s", strings.Join(in[:min(len(in), 5)], ", "))
	}
	return nil
}

// Delete removes an empty pool; its disks stay claimed.
func (s *Service) Delete(ctx context.Context, ref string) (*model.Task, error) {
	p, err := store.Get[model.Pool](ctx, s.env.Store, ref)
	if err != nil {
		return nil, err
	}
	if err := s.refuseUsed(ctx, p); err != nil {
		return nil, err
	}
	return s.env.Tasks.Start(ctx, "pool delete "+p.Name, func(ctx context.Context, h *task.Handle) (string, error) {
		_, err := s.env.Store.Transact(ctx, "delete pool "+p.Name, func(tx *store.Tx) error {
			disks, err := store.List[model.Disk](ctx, s.env.Store)
			if err != nil {
				return err
			}
			if p, err = store.GetID[model.Pool](ctx, s.env.Store, p.ID); err != nil {
				return err
			}
			if err := s.refuseUsed(ctx, p); err != nil {
				return err
			}
			store.TxDelete(tx, p)
			return give(tx, slices.DeleteFunc(disks, func(d *model.Disk) bool { return d.Spec.Pool != p.ID }), ids.ID{})
		})
		if err != nil {
			return "", err
		}
		return "pool " + p.Name + " deleted; its disks stay claimed", nil
	})
}
