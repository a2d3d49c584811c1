// Package volume keeps the volumes: it creates and deletes them, serves them
// without a VM, shows their health, and sees to it that every volume gets its
// copies back, whether its VM runs or not.
//
// A volume is an object and three records of safety (own, cfg, seg), made in one
// transaction. From then on the records change only by the volume's writer; this
// package starts writers and asks them. Deleting replaces the records by a tomb
// in one transaction; replicas free their extents on reading the tomb and never
// because something is missing.
package volume

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"roseau/internal/api"
	"roseau/internal/base/errs"
	"roseau/internal/base/ids"
	"roseau/internal/base/size"
	"roseau/internal/core/place"
	"roseau/internal/core/repl"
	"roseau/internal/driver/storagectl"
	"roseau/internal/model"
	"roseau/internal/store"
	"roseau/internal/svc"
	"roseau/internal/svc/pool"
	"roseau/internal/svc/records"
	"roseau/internal/svc/task"
)

// Service has the operations on volumes.
type Service struct {
	env     *svc.Env
	writers Writers
	storage Storage
}

// Storage is what deletion needs of the node's storage process.
type Storage interface {
	// FreeVolume frees every extent of a volume on the given disks of this node.
	// tomb is the positive record of the deletion: without it nothing is freed.
	FreeVolume(ctx context.Context, vol ids.ID, disks []ids.ID, tomb json.RawMessage) error
	// Copies lists what the disks of this node hold of volumes.
	Copies(ctx context.Context) ([]storagectl.Copy, error)
	// DropStray frees a copy of a volume whose records, read after Copies, do not
	// name the disk. Unavailable: it was opened or written since.
	DropStray(ctx context.Context, seen storagectl.Copy) error
	// SetLimits says how many bytes guests may use of disks of this node; the rest
	// is kept for repairs.
	SetLimits(ctx context.Context, limits map[ids.ID]size.Bytes) error
}

// New returns the service of a node.
func New(env *svc.Env, w Writers, st Storage) *Service {
	return &Service{env: env, writers: w, storage: st}
}

// Info is a volume with where its copies are.
type Info struct {
	model.Volume
	Segments int    `json:"segments"`
	Copies   []Copy `json:"copies,omitempty"`
}

// Copy is a disk that holds segments of a volume.
type Copy struct {
	Disk     string `json:"disk"`
	Node     string `json:"node"`
	Segments int    `json:"segments"`
	InSync   bool   `json:"in_sync"`
	Reason   string `json:"reason,omitempty"`
}

// CreateRequest is the body of POST /v1/volumes.
type CreateRequest struct {
	Name string     `json:"name"`
	Size size.Bytes `json:"size"`
	Pool string     `json:"pool,omitempty" doc:"default: the only one"`
}

// Routes adds the operations.
func (s *Service) Routes(r *api.Router) {
	huma.Register(r, api.Op("list-volumes", "GET", "/v1/volumes", "List volumes"), func(ctx context.Context, _ *struct{}) (*api.Body[[]Info], error) {
		return api.OK(s.List(ctx))
	})
	huma.Register(r, api.Op("get-volume", "GET", "/v1/volumes/{ref}", "Show a volume"), func(ctx context.Context, in *api.Ref) (*api.Body[*Info], error) {
		return api.OK(s.Get(ctx, in.Ref))
	})
	huma.Register(r, api.Op("create-volume", "POST", "/v1/volumes", "Create a volume"), func(ctx context.Context, in *struct{ Body CreateRequest }) (*api.AcceptTask, error) {
		return api.Accepted(s.StartCreate(ctx, in.Body))
	})
	huma.Register(r, api.Op("delete-volume", "DELETE", "/v1/volumes/{ref}", "Delete a volume"), func(ctx context.Context, in *api.Ref) (*api.AcceptTask, error) {
		return api.Accepted(s.StartDelete(ctx, in.Ref))
	})
	huma.Register(r, api.Op("replace-node", "POST", "/v1/nodes/{ref}/replace", "Let a new node take the place of one that is gone for good"), func(ctx context.Context, in *struct {
		api.Ref
		DryRun bool `query:"dry_run" doc:"say what would be done, change nothing"`
		Body   ReplaceNodeRequest
	}) (*api.AcceptTask, error) {
		return api.Accepted(s.StartReplaceNode(ctx, in.Ref.Ref, in.Body, in.DryRun))
	})
	huma.Register(r, api.Op("force-volume", "POST", "/v1/volumes/{ref}/force", "Go on without in-sync copies that are gone for good; what only they had is lost"), func(ctx context.Context, in *struct {
		api.Ref
		DryRun bool `query:"dry_run" doc:"say what would be lost, change nothing"`
		Body   ForceRequest
	}) (*api.AcceptTask, error) {
		return api.Accepted(s.StartForce(ctx, in.Ref.Ref, in.Body, in.DryRun))
	})
	huma.Register(r, api.Op("accept-tail", "POST", "/v1/volumes/{ref}/accept-tail", "Go on with a copy that may lack what was acknowledged, where nobody answers who could tell"), func(ctx context.Context, in *struct {
		api.Ref
		DryRun bool `query:"dry_run" doc:"say what may be lost, change nothing"`
	}) (*api.AcceptTask, error) {
		return api.Accepted(s.StartAcceptTail(ctx, in.Ref.Ref, in.DryRun))
	})
	s.writerRoutes(r)
	s.snapshotRoutes(r)
}

// List returns all volumes with their health as etcd has it.
func (s *Service) List(ctx context.Context) ([]Info, error) {
	vols, err := store.List[model.Volume](ctx, s.env.Store.Relaxed())
	if err != nil {
		return nil, err
	}
	recs, err := records.Volumes(ctx, s.env.Store.Relaxed())
	if err != nil {
		return nil, err
	}
	names, up, err := s.names(ctx)
	if err != nil {
		return nil, err
	}
	live, err := s.liveStatus(ctx, recs)
	if err != nil {
		return nil, err
	}
	volumeNames := map[ids.ID]string{}
	for _, v := range vols {
		volumeNames[v.ID] = v.Name
	}
	out := make([]Info, 0, len(vols))
	for _, v := range vols {
		i := Info{Volume: *v}
		if r := recs[v.ID]; r != nil {
			i.Status = records.Health(r, names, up)
			i.Status.Parent = parentName(r, recs, volumeNames)
			mergeLive(&i.Status, live[v.ID])
			i.Segments = len(r.Seg.Map)
			i.Copies = copies(r, names)
		}
		out = append(out, i)
	}
	return out, nil
}

// mergeLive adds what only the writer knows: the progress of a sync.
func mergeLive(st *model.VolumeStatus, live *model.VolumeStatus) {
	if live != nil {
		st.LostBlocks = live.LostBlocks
		if st.Parent != "" {
			st.FlattenPercent = live.FlattenPercent
		}
		if st.RollingBack != "" {
			st.RollbackPercent = live.RollbackPercent
		}
	}
	if live == nil || live.SyncTotal == 0 || st.Health == model.Waiting || len(st.Out) == 0 {
		return
	}
	st.SyncDone, st.SyncTotal, st.SyncLeft = live.SyncDone, live.SyncTotal, live.SyncLeft
	if st.Health == model.Degraded {
		st.Health = model.Syncing
	}
}

// askProgress bounds the question to a maintenance writer how far it is.
const askProgress = time.Second

// liveStatus collects what guards report of the volumes that they write, and what
// other writers that are at work, of which there are few, say when they are asked.
func (s *Service) liveStatus(ctx context.Context, vols map[ids.ID]*repl.VolumeRecord) (map[ids.ID]*model.VolumeStatus, error) {
	out := map[ids.ID]*model.VolumeStatus{}
	for id, v := range vols {
		syncing := v.Own.Purpose == repl.PurposeMaintenance && len(v.Own.Out) > 0
		if v.Own.Purpose == repl.PurposeVM || !syncing && v.Cfg.Parent.IsZero() && v.Cfg.Rollback == 0 {
			continue
		}
		actx, cancel := context.WithTimeout(ctx, askProgress)
		if st, err := s.WriterStatus(actx, id); err == nil && !final(st.Phase) {
			out[id] = &st.State
		}
		cancel()
	}
	recs, err := store.ListRecords[records.Report](ctx, s.env.Store.Relaxed().Relaxed(), records.ReportPrefix)
	if err != nil {
		return nil, err
	}
	for _, r := range recs {
		for _, v := range r.Value.Status.Volumes {
			out[v.ID] = &v.Status
		}
	}
	return out, nil
}

func copies(r *repl.VolumeRecord, names records.Names) []Copy {
	count := make([]int, len(r.Seg.Disks))
	for _, row := range r.Seg.Map {
		for _, i := range row {
			if int(i) < len(count) {
				count[i]++
			}
		}
	}
	var out []Copy
	for i, disk := range r.Seg.Disks {
		if count[i] == 0 {
			continue
		}
		o, isOut := r.Own.Out[disk]
		out = append(out, Copy{Disk: names.DiskName(disk), Node: names.NodeName(names.DiskNode[disk]), Segments: count[i], InSync: !isOut, Reason: string(o.Reason)})
	}
	return out
}

// names returns the names of things and which disks are up.
func (s *Service) names(ctx context.Context) (records.Names, map[ids.ID]bool, error) {
	disks, err := store.List[model.Disk](ctx, s.env.Store.Relaxed().Relaxed())
	if err != nil {
		return records.Names{}, nil, err
	}
	nodes, err := store.List[model.Node](ctx, s.env.Store.Relaxed().Relaxed())
	if err != nil {
		return records.Names{}, nil, err
	}
	alive, err := store.AliveNodes(ctx, s.env.Store.Relaxed().Relaxed())
	if err != nil {
		return records.Names{}, nil, err
	}
	up := map[ids.ID]bool{}
	for _, d := range disks {
		_, ok := alive[d.Spec.Node]
		up[d.ID] = ok && d.Status.State.Serving()
	}
	return records.NewNames(disks, nodes), up, nil
}

// Get returns one volume.
func (s *Service) Get(ctx context.Context, ref string) (*Info, error) {
	v, err := store.Get[model.Volume](ctx, s.env.Store.Relaxed(), ref)
	if err != nil {
		return nil, err
	}
	all, err := s.List(ctx)
	if err != nil {
		return nil, err
	}
	for i := range all {
		if all[i].ID == v.ID {
			return &all[i], nil
		}
	}
	return nil, errs.New(errs.NotFound, "read volume %s: not found", ref)
}

// StartCreate checks the request and starts the task.
func (s *Service) StartCreate(ctx context.Context, req CreateRequest) (*model.Task, error) {
	v := &model.Volume{Meta: model.Meta{Name: req.Name}, Spec: model.VolumeSpec{Pool: req.Pool, Size: req.Size}}
	if err := s.Check(ctx, v); err != nil {
		return nil, err
	}
	return s.env.Tasks.Start(ctx, "volume create "+v.Name, func(ctx context.Context, h *task.Handle) (string, error) {
		v, err := s.Create(ctx, v, Owner{})
		if err != nil {
			return "", err
		}
		return fmt.Sprintf("volume %s: %s in pool %s", v.Name, v.Spec.Size, v.Spec.Pool), nil
	})
}

// Check refuses a volume that cannot be created, before a task is started. It
// fills in the pool.
func (s *Service) Check(ctx context.Context, v *model.Volume) error {
	view, err := pool.ReadView(ctx, s.env.Store)
	if err != nil {
		return err
	}
	p, err := view.Pool(v.Spec.Pool)
	if err != nil {
		return err
	}
	v.Spec.Pool = p.Name
	if err := v.Validate(); err != nil {
		return err
	}
	if _, err := store.Get[model.Volume](ctx, s.env.Store, v.Name); err == nil {
		return errs.New(errs.Conflict, "create volume %s: the name is taken", v.Name).WithHint("`roseau volume list`")
	} else if !errors.Is(err, errs.NotFound) {
		return err
	}
	if err := view.Fits(p, "create volume "+v.Name, v.Spec.Size); err != nil {
		return err
	}
	_, _, err = place.Segments(pool.Rule(p), ids.ID{}, 1, ids.ID{}, view.Disks[p.ID])
	return err
}

// Owner says whose a new volume is.
type Owner struct {
	VM     ids.ID // zero: nobody's
	Prefer ids.ID // node that should have a copy of all of it; zero: none

	clone *cloneOf // nil: an empty volume
}

// Create makes a volume: the object and its records in one transaction.
func (s *Service) Create(ctx context.Context, v *model.Volume, o Owner) (*model.Volume, error) {
	view, err := pool.ReadView(ctx, s.env.Store)
	if err != nil {
		return nil, err
	}
	p, err := view.Pool(v.Spec.Pool)
	if err != nil {
		return nil, err
	}
	v.Spec.Pool = p.Name
	if v.ID.IsZero() {
		v.ID = ids.New()
	}
	if err := v.Validate(); err != nil {
		return nil, err
	}
	if err := view.Fits(p, "create volume "+v.Name, v.Spec.Size); err != nil {
		return nil, err
	}
	count := int((v.Spec.Size + place.SegmentBytes - 1) / place.SegmentBytes)
	disks, rows, err := place.Segments(pool.Rule(p), v.ID, count, o.Prefer, view.Disks[p.ID])
	if err != nil {
		return nil, err
	}
	seg := compact(disks, rows)
	cfg := repl.Cfg{SizeBytes: int64(v.Spec.Size), Copies: p.Spec.Copies, MinISR: p.Spec.MinISR, State: repl.VolumeLive, Pool: p.ID, VM: o.VM}
	tx := store.NewTx()
	if c := o.clone; c != nil {
		cfg = repl.CloneCfg(cfg, c.parent)
		tx.If(records.CfgKey(c.parent.Volume), c.cfgRev).If(records.ClonesKey(c.parent.Volume), c.rev).Put(records.ClonesKey(c.parent.Volume), c.next)
	}
	if err := store.TxCreate(tx, s.env.Store, v); err != nil {
		return nil, err
	}
	// A tomb of this id would mean that it was used before: never again.
	tx.If(records.TombKey(v.ID), 0).If(records.OwnKey(v.ID), 0)
	tx.Put(records.OwnKey(v.ID), repl.Own{}).Put(records.CfgKey(v.ID), cfg).Put(records.SegKey(v.ID), seg)
	rev, err := s.env.Store.Commit(ctx, tx)
	if errors.Is(err, errs.Conflict) {
		return nil, errs.New(errs.Conflict, "create volume %s: the name is taken", v.Name).WithHint("`roseau volume list`")
	}
	if err != nil {
		return nil, fmt.Errorf("create volume %s: %w", v.Name, err)
	}
	v.Revision = rev
	return v, nil
}

// compact drops the disks that no row names: the writer opens what seg lists.
func compact(disks []ids.ID, rows [][]uint16) repl.Segments {
	at := make([]int, len(disks))
	for i := range at {
		at[i] = -1
	}
	var seg repl.Segments
	for _, row := range rows {
		out := make([]uint16, len(row))
		for j, i := range row {
			if at[i] < 0 {
				at[i] = len(seg.Disks)
				seg.Disks = append(seg.Disks, disks[i])
			}
			out[j] = uint16(at[i])
		}
		seg.Map = append(seg.Map, out)
	}
	return seg
}
