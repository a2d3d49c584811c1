package sim

import (
	"encoding/json"
	"maps"

	"roseau/internal/base/ids"
	"roseau/internal/core/repl"
)

// etcdModel is a linearizable store of records. Reachability, delay, lost
// answers and late commits are the world's business (see world.txn).
type etcdModel struct {
	rev  int64
	keys map[string]etcdValue
	up   bool

	apart  bool   // it runs outside the three storage nodes
	cutOff *node  // cannot reach it
	free   bool   // mutation NoOwnCompare
	next   string // what happens to the next transaction: lost, unanswered, late
	backup map[string]etcdValue
	tombs  map[ids.ID]bool // volumes that were deleted
}

func cloneKeys(m map[string]etcdValue) map[string]etcdValue { return maps.Clone(m) }

type etcdValue struct {
	rev  int64
	json []byte
}

func newEtcd() *etcdModel {
	return &etcdModel{keys: map[string]etcdValue{}, tombs: map[ids.ID]bool{}, up: true}
}

func (e *etcdModel) put(path string, v any) {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err) // records always marshal
	}
	e.keys[path] = etcdValue{e.rev, b}
}

// commit applies a transaction: all or nothing.
func (e *etcdModel) commit(t repl.Txn) (repl.Outcome, int64) {
	for _, c := range t.Compares {
		if e.keys[c.Key.Path()].rev != c.Rev && !(e.free && c.Key.Kind == repl.KeyOwn) {
			return repl.OutcomeConflict, 0
		}
	}
	e.rev++
	for _, p := range t.Puts {
		switch {
		case p.Own != nil:
			e.put(p.Key.Path(), p.Own)
		case p.Cfg != nil:
			e.put(p.Key.Path(), p.Cfg)
		case p.Seg != nil:
			e.put(p.Key.Path(), p.Seg)
		case p.Placement != nil:
			e.put(p.Key.Path(), p.Placement)
		}
	}
	return repl.OutcomeCommitted, e.rev
}

func (e *etcdModel) get(path string, v any) int64 {
	val, ok := e.keys[path]
	if !ok {
		return 0
	}
	if err := json.Unmarshal(val.json, v); err != nil {
		panic(err)
	}
	return val.rev
}

// stamp stands for a volume's own records: as long as it stays, so do they, for a
// value is never changed in place.
func (e *etcdModel) stamp(id ids.ID) (s [3]*byte) {
	for i, kind := range []repl.KeyKind{repl.KeyOwn, repl.KeyCfg, repl.KeySeg} {
		if b := e.keys[repl.Key{Kind: kind, ID: id}.Path()].json; len(b) > 0 {
			s[i] = &b[0]
		}
	}
	return s
}

// records reads what a group of volumes depends on, at one revision.
func (e *etcdModel) records(vm ids.ID, volumes []ids.ID, disks []repl.DiskNode) repl.Records {
	r := repl.Records{VM: vm, Disks: disks}
	for _, id := range volumes {
		v := repl.VolumeRecord{ID: id}
		v.OwnRev = e.get(repl.Key{Kind: repl.KeyOwn, ID: id}.Path(), &v.Own)
		v.CfgRev = e.get(repl.Key{Kind: repl.KeyCfg, ID: id}.Path(), &v.Cfg)
		v.SegRev = e.get(repl.Key{Kind: repl.KeySeg, ID: id}.Path(), &v.Seg)
		r.Volumes = append(r.Volumes, v)
	}
	for i := range r.Volumes {
		if p := r.Volumes[i].Cfg.Parent; !p.IsZero() {
			r.Parents = append(r.Parents, e.records(ids.ID{}, []ids.ID{p.Volume}, nil).Volumes[0])
		}
	}
	if !vm.IsZero() {
		r.PlacementRev = e.get(repl.Key{Kind: repl.KeyPlacement, ID: vm}.Path(), &r.Placement)
	}
	return r
}
