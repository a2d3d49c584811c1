// Package disk keeps the disks of the cluster: it asks every node what disks it
// has, claims blank ones, wipes others on an explicit word, and reports the
// state of those that are claimed.
//
// The node's storage process does the work (Storage); what it holds is the
// truth. A claim is first made there and then becomes an object, and the
// reconciler makes the object too, so a daemon that dies in between leaves
// nothing half-made.
package disk

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"roseau/internal/api"
	"roseau/internal/base/clock"
	"roseau/internal/base/errs"
	"roseau/internal/base/ids"
	"roseau/internal/base/size"
	"roseau/internal/core/repl"
	"roseau/internal/model"
	"roseau/internal/store"
	"roseau/internal/svc"
	"roseau/internal/svc/records"
	"roseau/internal/svc/task"
)

// Device is a disk of a node as its storage process sees it.
type Device struct {
	Path   string          `json:"path"`
	Model  string          `json:"model,omitempty"`
	Serial string          `json:"serial,omitempty"`
	Size   size.Bytes      `json:"size"`
	State  model.DiskState `json:"state"`
	// Content says what is on a disk that is not blank: "ext4 mounted on /srv".
	Content string `json:"content,omitempty"`
	// The following are of claimed disks.
	ID     ids.ID     `json:"id,omitzero"`
	Data   size.Bytes `json:"data,omitempty"`
	Used   size.Bytes `json:"used,omitempty"`
	Errors int64      `json:"errors,omitempty"`
	Reason string     `json:"reason,omitempty"`
}

// Storage is the control of the node's storage process.
type Storage interface {
	// Devices lists every disk, claimed ones included (also if missing).
	Devices(ctx context.Context) ([]Device, error)
	// Claimed lists the claimed disks alone, with their use: cheap enough for
	// every second.
	Claimed(ctx context.Context) ([]Device, error)
	// Claim formats a blank disk for the cluster and opens it. Conflict if it is
	// not blank; claiming a disk that is claimed already returns it.
	Claim(ctx context.Context, path string) (Device, error)
	// Wipe destroys what is on a disk that is not in use, and not claimed, or failed.
	// Conflict if it is one of keep.
	Wipe(ctx context.Context, path string, keep []ids.ID) error
	// Forget releases a claimed disk for good.
	Forget(ctx context.Context, disk ids.ID) error
}

// Service has the operations on disks.
type Service struct {
	env     *svc.Env
	storage Storage
	light   Light
	missing map[ids.ID]clock.Instant // since when disks are missing; of Run's goroutine
	used    map[ids.ID]usage         // what is allocated on them; of Run's goroutine
}

// New returns the service of a node.
func New(env *svc.Env, storage Storage, light Light) *Service {
	return &Service{env: env, storage: storage, light: light, missing: map[ids.ID]clock.Instant{}, used: map[ids.ID]usage{}}
}

// Info is a row of `disk list`.
type Info struct {
	Node string `json:"node"`
	Name string `json:"name,omitempty"` // of the object, if claimed
	Pool string `json:"pool,omitempty"`
	Device
	Care *model.DiskCare `json:"care,omitempty"` // of claimed disks
}

// List is the answer of `disk list`.
type List struct {
	Disks []Info `json:"disks"`
	// Unreachable names nodes that did not answer, with the cause.
	Unreachable []string `json:"unreachable,omitempty"`
}

// ClaimRequest is the body of a claim or a wipe.
type ClaimRequest struct {
	Paths []string `json:"paths" minItems:"1" doc:"device paths as disk list shows them"`
}

// Routes adds the operations.
func (s *Service) Routes(r *api.Router) {
	huma.Register(r, api.Op("list-disks", "GET", "/v1/disks", "List the disks of all nodes"), func(ctx context.Context, _ *struct{}) (*api.Body[*List], error) {
		return api.OK(s.List(ctx))
	})
	huma.Register(r, api.Op("get-disk", "GET", "/v1/disks/{ref}", "Show a claimed disk"), func(ctx context.Context, in *api.Ref) (*api.Body[*model.Disk], error) {
		return api.OK(store.Get[model.Disk](ctx, s.env.Store, in.Ref))
	})
	on := func(op huma.Operation) huma.Operation {
		op.Middlewares = huma.Middlewares{r.OnNode(s.env.OnNode("node"))}
		return op
	}
	huma.Register(r, on(api.Op("list-node-disks", "GET", "/v1/nodes/{node}/disks", "List the disks of a node")), func(ctx context.Context, _ *NodeRef) (*api.Body[[]Device], error) {
		return api.OK(s.storage.Devices(ctx))
	})
	s.retireRoutes(r)
	s.locateRoutes(r, on)
	huma.Register(r, on(api.Op("claim-disks", "POST", "/v1/nodes/{node}/disks/claim", "Claim blank disks of a node")), func(ctx context.Context, in *struct {
		NodeRef
		Body ClaimRequest
	}) (*api.AcceptTask, error) {
		return api.Accepted(s.Claim(ctx, in.Body.Paths))
	})
	huma.Register(r, on(api.Op("wipe-disk", "POST", "/v1/nodes/{node}/disks/wipe", "Destroy what is on disks that are not in use")), func(ctx context.Context, in *struct {
		NodeRef
		Body ClaimRequest
	}) (*api.AcceptTask, error) {
		return api.Accepted(s.Wipe(ctx, in.Body.Paths))
	})
}

// NodeRef is the input of operations on the disks of a node.
type NodeRef struct {
	Node string `path:"node" doc:"name or id of the node"`
}

// List asks every node.
func (s *Service) List(ctx context.Context) (*List, error) {
	objs, err := store.List[model.Disk](ctx, s.env.Store.Relaxed())
	if err != nil {
		return nil, err
	}
	pools, err := store.List[model.Pool](ctx, s.env.Store.Relaxed())
	if err != nil {
		return nil, err
	}
	poolName := map[ids.ID]string{}
	for _, p := range pools {
		poolName[p.ID] = p.Name
	}
	byID := map[ids.ID]*model.Disk{}
	for _, d := range objs {
		byID[d.ID] = d
	}
	out := &List{Disks: []Info{}}
	var mu sync.Mutex
	down, err := s.env.EachNode(ctx, func(ctx context.Context, n *model.Node) {
		devs, err := s.devices(ctx, n)
		mu.Lock()
		defer mu.Unlock()
		if err != nil {
			out.Unreachable = append(out.Unreachable, fmt.Sprintf("%s: %v", n.Name, err))
			return
		}
		for _, d := range devs {
			i := Info{Node: n.Name, Device: d}
			if o := byID[d.ID]; o != nil {
				i.Name, i.Pool, i.Care = o.Name, poolName[o.Spec.Pool], o.Status.Care
				if o.Spec.Retire && i.State == model.DiskActive {
					i.State, i.Reason = model.DiskRetired, o.Status.Reason
				}
			}
			out.Disks = append(out.Disks, i)
		}
	})
	if err != nil {
		return nil, err
	}
	for _, n := range down {
		out.Unreachable = append(out.Unreachable, n+": down")
	}
	slices.Sort(out.Unreachable)
	slices.SortFunc(out.Disks, func(a, b Info) int { return cmp.Or(cmp.Compare(a.Node, b.Node), cmp.Compare(a.Path, b.Path)) })
	return out, nil
}

func (s *Service) devices(ctx context.Context, n *model.Node) ([]Device, error) {
	if n.ID == s.env.Node {
		return s.storage.Devices(ctx)
	}
	var devs []Device
	return devs, s.env.Ask(ctx, n.ID, "GET", "/v1/nodes/"+n.ID.String()+"/disks", nil, &devs)
}

// find resolves a path or the last part of it ("d1") to a device of this node.
func find(devs []Device, path string) (Device, error) {
	for _, is := range []func(Device) bool{
		func(d Device) bool { return d.Path == path },
		func(d Device) bool {
			return strings.HasSuffix(d.Path, "/"+path) || strings.HasSuffix(d.Path, "/"+path+".img")
		},
	} {
		i := slices.IndexFunc(devs, is)
		if i < 0 {
			continue
		}
		// A claimed disk that is gone is listed where it was: what is there now counts.
		if j := slices.IndexFunc(devs, func(d Device) bool { return d.Path == devs[i].Path && d.ID.IsZero() }); j >= 0 {
			i = j
		}
		return devs[i], nil
	}
	return Device{}, errs.New(errs.NotFound, "find disk %s: this node has no such disk", path).WithHint("`roseau disk list` shows the paths")
}

// startTime is how long an order to claim or wipe waits for a storage process
// that does not answer: it starts beside the node's daemon, and is restarted.
const startTime = 10 * time.Second

// present lists the devices of this node, and gives a storage process that is
// about to start the time to do so.
func (s *Service) present(ctx context.Context) ([]Device, error) {
	limit := time.NewTimer(startTime)
	defer limit.Stop()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		devs, err := s.storage.Devices(ctx)
		if !errors.Is(err, errs.Unavailable) {
			return devs, err
		}
		select {
		case <-tick.C:
		case <-limit.C:
			return nil, err
		case <-ctx.Done():
			return nil, err
		}
	}
}

// check returns the devices of all paths, or refuses before anything is done.
func (s *Service) check(ctx context.Context, verb string, paths []string) ([]Device, error) {
	devs, err := s.present(ctx)
	if err != nil {
		return nil, err
	}
	var out []Device
	for _, p := range paths {
		d, err := find(devs, p)
		if err != nil {
			return nil, err
		}
		switch {
		case d.State == model.DiskFree, verb == "wipe" && d.State == model.DiskInUse:
		case verb == "wipe" && d.State == model.DiskFailed: // see mayWipe
		case verb == "claim" && d.State == model.DiskActive: // a claim asked for twice
		case d.State == model.DiskInUse:
			return nil, errs.New(errs.Conflict, "%s disk %s/%s: it is not blank: %s", verb, s.env.NodeName, d.Path, cmp.Or(d.Content, "something is on it")).
				WithHint("if nothing on it is needed: `roseau disk wipe %s/%s`", s.env.NodeName, d.Path)
		default:
			return nil, errs.New(errs.Conflict, "%s disk %s/%s: it is claimed already (%s)", verb, s.env.NodeName, d.Path, d.State)
		}
		out = append(out, d)
	}
	return out, nil
}

// Claim starts the task that claims disks of this node.
func (s *Service) Claim(ctx context.Context, paths []string) (*model.Task, error) {
	devs, err := s.check(ctx, "claim", paths)
	if err != nil {
		return nil, err
	}
	action := fmt.Sprintf("disk claim %s/%s", s.env.NodeName, strings.Join(paths, ","))
	return s.env.Tasks.Start(ctx, action, func(ctx context.Context, h *task.Handle) (string, error) {
		for i, d := range devs {
			h.Phase("formats %s", d.Path)
			h.Progress(int64(i), int64(len(devs)), "items")
			c, err := s.storage.Claim(ctx, d.Path)
			if err != nil {
				return "", fmt.Errorf("node %s: %w", s.env.NodeName, err)
			}
			o, err := s.adopt(ctx, c)
			if err != nil {
				return "", err
			}
			// The pool that is made next takes what is active.
			if err := s.update(ctx, o, status(c), false); err != nil {
				return "", err
			}
			h.Logf("%s is disk %s, %s for data", d.Path, o.Name, c.Data)
		}
		h.Progress(int64(len(devs)), int64(len(devs)), "items")
		return fmt.Sprintf("%d disks of %s claimed", len(devs), s.env.NodeName), nil
	})
}

// Wipe starts the task that makes disks of this node blank.
func (s *Service) Wipe(ctx context.Context, paths []string) (*model.Task, error) {
	devs, err := s.check(ctx, "wipe", paths)
	if err != nil {
		return nil, err
	}
	action := fmt.Sprintf("disk wipe %s/%s", s.env.NodeName, strings.Join(paths, ","))
	return s.env.Tasks.Start(ctx, action, func(ctx context.Context, h *task.Handle) (string, error) {
		for _, d := range devs {
			h.Phase("wipes %s", d.Path)
			keep, err := s.mayWipe(ctx, d)
			if err != nil {
				return "", err
			}
			if err := s.storage.Wipe(ctx, d.Path, keep); err != nil {
				return "", fmt.Errorf("node %s: %w", s.env.NodeName, err)
			}
			was := cmp.Or(d.Content, d.Reason, "nothing was on it")
			h.Logf("%s is blank; before: %s", d.Path, was)
			s.env.Events.Emit("warn", "disk "+s.env.NodeName+"/"+d.Path, "wiped; before: "+was)
		}
		return fmt.Sprintf("%d disks of %s wiped", len(devs), s.env.NodeName), nil
	})
}

// mayWipe returns the disks that the cluster counts on, which no wipe may meet under
// whatever path. One that failed is not among them, but where a volume has its last
// in-sync copy on it: then it is refused.
func (s *Service) mayWipe(ctx context.Context, d Device) (keep []ids.ID, err error) {
	all, err := store.List[model.Disk](ctx, s.env.Store)
	if err != nil {
		return nil, err
	}
	for _, o := range all {
		if o.ID != d.ID {
			keep = append(keep, o.ID)
		}
	}
	if d.ID.IsZero() {
		return keep, nil
	}
	vols, err := records.Volumes(ctx, s.env.Store)
	if err != nil {
		return nil, err
	}
	if v := lastOn(vols, d.ID); !v.IsZero() {
		return nil, errs.New(errs.Conflict, "wipe disk %s/%s: it has the last in-sync copy of volume %s", s.env.NodeName, d.Path, v).
			WithHint("start it elsewhere if it can still be read; `roseau volume force %s --dry-run` says what going on without it loses", v)
	}
	return keep, nil
}

// lastOn returns a volume with a segment whose in-sync set is d alone, or zero.
func lastOn(vols map[ids.ID]*repl.VolumeRecord, d ids.ID) ids.ID {
	for id, v := range vols {
		for i := range v.Seg.Map {
			if isr := v.ISR(i); len(isr) == 1 && isr[0] == d {
				return id
			}
		}
	}
	return ids.ID{}
}

// adoptFound adopts a disk that has no object. It is asked for once more: between the
// list of the disks and that of the objects it may have been removed.
func (s *Service) adoptFound(ctx context.Context, d Device) error {
	devs, err := s.storage.Claimed(ctx)
	if err != nil || !slices.ContainsFunc(devs, func(x Device) bool { return x.ID == d.ID }) {
		return err
	}
	_, err = s.adopt(ctx, d)
	return err
}

// adopt makes the object and the record of a claimed disk, if they are not
// there.
func (s *Service) adopt(ctx context.Context, d Device) (*model.Disk, error) {
	o, err := store.GetID[model.Disk](ctx, s.env.Store, d.ID)
	if err == nil || !errors.Is(err, errs.NotFound) {
		return o, err
	}
	all, err := store.List[model.Disk](ctx, s.env.Store)
	if err != nil {
		return nil, err
	}
	taken := map[string]bool{}
	for _, x := range all {
		taken[x.Name] = true
	}
	for i := 1; ; i++ {
		name := fmt.Sprintf("%s-d%d", s.env.NodeName, i)
		if taken[name] {
			continue
		}
		o = &model.Disk{Meta: model.Meta{ID: d.ID, Name: name}, Spec: model.DiskSpec{Node: s.env.Node, Path: d.Path, Size: d.Size}, Status: status(d)}
		tx := store.NewTx()
		if err := store.TxCreate(tx, s.env.Store, o); err != nil {
			return nil, err
		}
		tx.Put(records.DiskKey(d.ID), records.Disk{Node: s.env.Node, SizeBytes: int64(d.Size), State: "active", FaultDomain: s.env.NodeName})
		_, err := s.env.Store.Commit(ctx, tx)
		if errors.Is(err, errs.Conflict) {
			if have, gerr := store.GetID[model.Disk](ctx, s.env.Store, d.ID); gerr == nil {
				return have, nil
			}
			taken[name] = true
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("create disk %s: %w", name, err)
		}
		return o, nil
	}
}

func status(d Device) model.DiskStatus {
	return model.DiskStatus{State: d.State, Model: d.Model, Serial: d.Serial, Content: d.Content, Data: d.Data, Used: d.Used, Errors: d.Errors, Reason: d.Reason}
}

// reportInterval is how often the state of the node's disks is compared with
// what the objects say.
const reportInterval = time.Second

// Run reports the state of this node's disks until ctx ends.
func (s *Service) Run(ctx context.Context) error {
	return s.env.Loop(ctx, "disk", reportInterval, nil, s.report)
}

// answerTimeout is how long the storage process may take to say that it lives.
const answerTimeout = 2 * time.Second

// reportNode tells the cluster whether this node's storage process answers, when
// that changes.
func (s *Service) reportNode(ctx context.Context, cause error) error {
	r := records.NodeReport{Storage: cause == nil}
	if cause != nil {
		r.Why = cause.Error()
	}
	key := records.NodeReportKey(s.env.Node)
	was, err := store.GetRecord[records.NodeReport](ctx, s.env.Store, key)
	if err != nil || was.Revision != 0 && was.Value.Storage == r.Storage {
		return err
	}
	_, err = s.env.Store.Commit(ctx, store.NewTx().Put(key, r))
	return err
}

// The allocation is for people and placement, and every report of it is a
// consensus round: it is reported when it changed by usedStep, and when it has
// not changed any more for usedRest.
const (
	usedStep = 64 * size.MiB
	usedRest = 5 * time.Second
)

// usage is how much is allocated on a disk, and since when it is so.
type usage struct {
	bytes size.Bytes
	since clock.Instant
}

// rests tells whether the allocation of d has not changed for usedRest.
func (s *Service) rests(d Device) bool {
	now := s.env.Clock.Now()
	u, known := s.used[d.ID]
	if !known || u.bytes != d.Used {
		s.used[d.ID] = usage{d.Used, now}
		return false
	}
	return now.Sub(u.since) >= usedRest
}

// worthTelling tells whether a state is reported after the last one; rests: the
// allocation does not change at present.
func worthTelling(was, st model.DiskStatus, rests bool) bool {
	if st.State != was.State || st.Errors != was.Errors || st.Reason != was.Reason || st.Data != was.Data {
		return true
	}
	d := st.Used - was.Used
	return d >= usedStep || d <= -usedStep || d != 0 && rests
}

func (s *Service) report(ctx context.Context) error {
	sctx, cancel := context.WithTimeout(ctx, answerTimeout)
	devs, err := s.storage.Claimed(sctx)
	cancel()
	if rerr := s.reportNode(ctx, err); rerr != nil {
		return errors.Join(err, rerr)
	}
	if err != nil {
		return err
	}
	objs, err := store.List[model.Disk](ctx, s.env.Store)
	if err != nil {
		return err
	}
	byID := map[ids.ID]*model.Disk{}
	for _, o := range objs {
		if o.Spec.Node == s.env.Node {
			byID[o.ID] = o
		}
	}
	var all error
	for _, d := range devs {
		if d.ID.IsZero() || d.State == model.DiskFree || d.State == model.DiskInUse {
			continue
		}
		o := byID[d.ID]
		delete(byID, d.ID)
		if s.justMissing(d) { // a claim that formats it is about to make its object
			continue
		}
		if o == nil {
			all = errors.Join(all, s.adoptFound(ctx, d))
			continue
		}
		all = errors.Join(all, s.update(ctx, o, status(d), s.rests(d)), s.stands(ctx, o, d))
	}
	for _, o := range byID { // claimed once, and the storage process knows nothing of it
		st := o.Status
		st.State, st.Reason = model.DiskMissing, "not found on its node"
		all = errors.Join(all, s.update(ctx, o, st, false))
	}
	return all
}

// stands notes where a disk serves now, if it was found at another path.
func (s *Service) stands(ctx context.Context, o *model.Disk, d Device) error {
	if d.State != model.DiskActive || d.Path == o.Spec.Path {
		return nil
	}
	_, err := store.Update(ctx, s.env.Store, o.ID, func(o *model.Disk) error { o.Spec.Path = d.Path; return nil })
	if err == nil {
		s.env.Events.Emit("info", "disk "+o.Name, "it is at "+d.Path+" now; it was at "+o.Spec.Path)
	}
	return err
}

// missingFor is how long a disk must be missing before it is reported: a storage
// process that has just started opens its disks one after another.
const missingFor = 2 * time.Second

func (s *Service) justMissing(d Device) bool {
	if d.State != model.DiskMissing {
		delete(s.missing, d.ID)
		return false
	}
	since, known := s.missing[d.ID]
	if !known {
		since = s.env.Clock.Now()
		s.missing[d.ID] = since
	}
	return s.env.Clock.Now().Sub(since) < missingFor
}

func (s *Service) update(ctx context.Context, o *model.Disk, st model.DiskStatus, rests bool) error {
	was := o.Status
	if o.Spec.Retire && st.State == model.DiskActive {
		st.State, st.Reason = model.DiskRetired, was.Reason
		if was.State != model.DiskRetired {
			st.Reason = retiring
		}
	}
	if !worthTelling(was, st, rests) {
		return nil
	}
	if _, err := store.Update(ctx, s.env.Store, o.ID, func(d *model.Disk) error {
		st.Care = d.Status.Care // the office's
		d.Status = st
		return nil
	}); err != nil {
		return err
	}
	if st.State != was.State {
		level := "info"
		if st.State == model.DiskFailed || st.State == model.DiskMissing {
			level = "error"
		}
		text := fmt.Sprintf("is %s", st.State)
		if st.Reason != "" {
			text += ": " + st.Reason
		}
		s.env.Events.Emit(level, "disk "+o.Name, text)
	}
	return nil
}
