package records

import (
	"context"
	"encoding/json"
	"maps"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sync/errgroup"

	"roseau/internal/base/clock"
	"roseau/internal/base/ids"
	"roseau/internal/core/maint"
	"roseau/internal/core/repl"
	"roseau/internal/model"
	"roseau/internal/store"
)

// NodeReportPrefix is where nodes say what only they can know of themselves.
const NodeReportPrefix = "/r/node/"

// PlanKey is the record of what the whole cluster is to do.
const PlanKey = "/s/maint/plan"

// NodeReport is /r/node/<node>, written by that node's daemon when it changes.
type NodeReport struct {
	Storage bool   `json:"storage"` // its storage process answers
	Why     string `json:"why,omitempty"`
}

// NodeReportKey is the key of a node's report.
func NodeReportKey(node ids.ID) string { return NodeReportPrefix + node.String() }

// SeenReport is a Report with when it came.
type SeenReport struct {
	Report
	Seen  clock.Instant // when it was received here
	Since clock.Instant // when its phase was first seen here
}

// Placed is a placement with its revision.
type Placed struct {
	repl.Placement
	Revision int64
}

// World follows everything that placement and reconcilers look at. What it
// returns is shared and must not be changed. While etcd is away it keeps what it
// had.
type World struct {
	Nodes *store.Cache[model.Node, *model.Node]
	Disks *store.Cache[model.Disk, *model.Disk]
	VMs   *store.Cache[model.VM, *model.VM]
	Nets  *store.Cache[model.Network, *model.Network]
	Rules *store.Cache[model.Rule, *model.Rule]

	s     *store.Store
	clock clock.Clock

	mu         sync.Mutex // protects the fields below
	vols       map[ids.ID]*repl.VolumeRecord
	placements map[ids.ID]Placed
	reports    map[ids.ID]map[ids.ID]SeenReport // by VM, then node
	nodes      map[ids.ID]NodeReport
	plan       *maint.Plan // nil: none
	planRev    int64
	synced     int // prefixes that were read once
	changed    chan struct{}
}

// NewWorld returns an empty world; Run fills it.
func NewWorld(s *store.Store, clk clock.Clock) *World {
	return &World{
		Nodes: store.NewCache[model.Node, *model.Node](s), Disks: store.NewCache[model.Disk, *model.Disk](s),
		VMs: store.NewCache[model.VM, *model.VM](s), Nets: store.NewCache[model.Network, *model.Network](s),
		Rules: store.NewCache[model.Rule, *model.Rule](s),
		s:     s, clock: clk,
		vols: map[ids.ID]*repl.VolumeRecord{}, placements: map[ids.ID]Placed{},
		reports: map[ids.ID]map[ids.ID]SeenReport{}, nodes: map[ids.ID]NodeReport{}, changed: make(chan struct{}),
	}
}

const worldPrefixes = 5

// Synced reports whether everything was read once.
func (w *World) Synced() bool {
	w.mu.Lock()
	n := w.synced
	w.mu.Unlock()
	return n >= worldPrefixes && w.Nodes.Synced() && w.Disks.Synced() && w.VMs.Synced() && w.Nets.Synced() && w.Rules.Synced()
}

// Changed returns channels that are closed at the next change. Take them before
// reading.
func (w *World) Changed() []<-chan struct{} {
	w.mu.Lock()
	own := w.changed
	w.mu.Unlock()
	return []<-chan struct{}{own, w.Nodes.Changed(), w.Disks.Changed(), w.VMs.Changed(), w.Nets.Changed(), w.Rules.Changed()}
}

// Names tells the names of disks and nodes.
func (w *World) Names() Names { return NewNames(w.Disks.List(), w.Nodes.List()) }

// Volume returns the records of a volume, or nil.
func (w *World) Volume(id ids.ID) *repl.VolumeRecord {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.vols[id]
}

// Placement returns where a VM is placed; the zero value: nowhere, ever.
func (w *World) Placement(vm ids.ID) Placed {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.placements[vm]
}

// Placements returns all placements.
func (w *World) Placements() map[ids.ID]Placed {
	w.mu.Lock()
	defer w.mu.Unlock()
	return maps.Clone(w.placements)
}

// Reports returns what the nodes say of the guards of a VM.
func (w *World) Reports(vm ids.ID) map[ids.ID]SeenReport {
	w.mu.Lock()
	defer w.mu.Unlock()
	return maps.Clone(w.reports[vm])
}

// NodeReport returns what a node says of itself.
func (w *World) NodeReport(node ids.ID) NodeReport {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.nodes[node]
}

// Plan returns what the whole cluster is to do and the revision of that record;
// nil: nothing.
func (w *World) Plan() (*maint.Plan, int64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.plan, w.planRev
}

// ShutsDown reports whether the cluster is being shut down.
func (w *World) ShutsDown() bool {
	p, _ := w.Plan()
	return p != nil && p.Kind == maint.Shutdown
}

// GoesOff reports whether the nodes go off because the cluster is shut down: their
// silence is asked for.
func (w *World) GoesOff() bool {
	p, _ := w.Plan()
	return p != nil && p.Kind == maint.Shutdown && p.Phase == maint.Off
}

// Volumes returns the records of all volumes.
func (w *World) Volumes() []*repl.VolumeRecord {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Collect(maps.Values(w.vols))
}

// NoteOwnPlacement puts in what this process has just written, so that it does
// not decide on the old value before the watch tells it.
func (w *World) NoteOwnPlacement(vm ids.ID, p Placed) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if p.Revision > w.placements[vm].Revision {
		w.placements[vm] = p
		w.signalLocked()
	}
}

// Run follows etcd until ctx ends.
func (w *World) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return w.Nodes.Run(ctx) })
	g.Go(func() error { return w.Disks.Run(ctx) })
	g.Go(func() error { return w.VMs.Run(ctx) })
	g.Go(func() error { return w.Nets.Run(ctx) })
	g.Go(func() error { return w.Rules.Run(ctx) })
	for _, prefix := range []string{VolumePrefix, VMPrefix, ReportPrefix, NodeReportPrefix, PlanKey} {
		g.Go(func() error {
			first := true
			return w.s.Follow(ctx, prefix, func(kvs []store.KV) {
				w.mu.Lock()
				defer w.mu.Unlock()
				w.resetLocked(prefix, kvs)
				for _, kv := range kvs {
					w.oneLocked(prefix, kv)
				}
				if first {
					first = false
					w.synced++
				}
				w.signalLocked()
			}, func(kv store.KV) {
				w.mu.Lock()
				defer w.mu.Unlock()
				w.oneLocked(prefix, kv)
				w.signalLocked()
			})
		})
	}
	return g.Wait()
}

func (w *World) signalLocked() {
	close(w.changed)
	w.changed = make(chan struct{})
}

func (w *World) resetLocked(prefix string, kvs []store.KV) {
	switch prefix {
	case VolumePrefix:
		w.vols = map[ids.ID]*repl.VolumeRecord{}
	case VMPrefix:
		w.placements = map[ids.ID]Placed{}
	case NodeReportPrefix:
		w.nodes = map[ids.ID]NodeReport{}
	case PlanKey:
		w.plan, w.planRev = nil, 0
	case ReportPrefix:
		// When a report was first seen matters: only those that are gone go.
		have := map[string]bool{}
		for _, kv := range kvs {
			have[kv.Key] = true
		}
		for vm, byNode := range w.reports {
			maps.DeleteFunc(byNode, func(node ids.ID, _ SeenReport) bool { return !have[ReportKey(vm, node)] })
		}
	}
}

func (w *World) oneLocked(prefix string, kv store.KV) {
	switch prefix {
	case VolumePrefix:
		w.volumeLocked(kv)
	case VMPrefix:
		if id, what, ok := splitKey(VMPrefix, kv.Key); ok && what == "placement" {
			p := Placed{Revision: kv.Revision}
			if kv.Value == nil {
				delete(w.placements, id)
			} else if json.Unmarshal(kv.Value, &p.Placement) == nil {
				w.placements[id] = p
			}
		}
	case ReportPrefix:
		w.reportLocked(kv)
	case PlanKey:
		p := new(maint.Plan)
		if kv.Value == nil || json.Unmarshal(kv.Value, p) != nil {
			p = nil
		}
		w.plan, w.planRev = p, kv.Revision
		if p == nil {
			w.planRev = 0
		}
	case NodeReportPrefix:
		if id, err := ids.Parse(strings.TrimPrefix(kv.Key, NodeReportPrefix)); err == nil {
			var r NodeReport
			if kv.Value == nil {
				delete(w.nodes, id)
			} else if json.Unmarshal(kv.Value, &r) == nil {
				w.nodes[id] = r
			}
		}
	}
}

func splitKey(prefix, key string) (ids.ID, string, bool) {
	a, b, ok := strings.Cut(strings.TrimPrefix(key, prefix), "/")
	id, err := ids.Parse(a)
	return id, b, ok && err == nil
}

// volumeLocked replaces the record whole, so that what was returned stays as it
// was.
func (w *World) volumeLocked(kv store.KV) {
	id, what, ok := splitKey(VolumePrefix, kv.Key)
	if !ok {
		return
	}
	if kv.Value == nil {
		if what == "own" {
			delete(w.vols, id)
		}
		return
	}
	fresh := map[ids.ID]*repl.VolumeRecord{}
	if addVolumeKey(fresh, kv.Key, kv.Value, kv.Revision) != nil || fresh[id] == nil {
		return
	}
	v := repl.VolumeRecord{ID: id}
	if old := w.vols[id]; old != nil {
		v = *old
	}
	switch what {
	case "own":
		v.Own, v.OwnRev = fresh[id].Own, kv.Revision
	case "cfg":
		v.Cfg, v.CfgRev = fresh[id].Cfg, kv.Revision
	case "seg":
		v.Seg, v.SegRev = fresh[id].Seg, kv.Revision
	}
	w.vols[id] = &v
}

func (w *World) reportLocked(kv store.KV) {
	vm, nodeText, ok := splitKey(ReportPrefix, kv.Key)
	node, err := ids.Parse(nodeText)
	if !ok || err != nil {
		return
	}
	if kv.Value == nil {
		delete(w.reports[vm], node)
		return
	}
	var r Report
	if json.Unmarshal(kv.Value, &r) != nil {
		return
	}
	now := w.clock.Now()
	s := SeenReport{Report: r, Seen: now, Since: now}
	if old, ok := w.reports[vm][node]; ok && old.Absent == r.Absent && old.Status.Phase == r.Status.Phase && old.Status.Attempt == r.Status.Attempt {
		s.Since = old.Since
	}
	if w.reports[vm] == nil {
		w.reports[vm] = map[ids.ID]SeenReport{}
	}
	w.reports[vm][node] = s
}
