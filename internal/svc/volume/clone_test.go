package volume

import (
	"log/slog"
	"slices"
	"strings"
	"testing"

	"roseau/internal/base/clock"
	"roseau/internal/base/errs"
	"roseau/internal/base/ids"
	"roseau/internal/base/size"
	"roseau/internal/core/repl"
	"roseau/internal/driver/etcd/etcdtest"
	"roseau/internal/model"
	"roseau/internal/store"
	"roseau/internal/svc"
	"roseau/internal/svc/event"
	"roseau/internal/svc/records"
)

// cloneWorld is a cluster of one node and one disk with a volume of two snapshots,
// numbered 1 and 2.
type cloneWorld struct {
	*testing.T
	s   *Service
	vol *model.Volume
}

func newCloneWorld(t *testing.T) *cloneWorld {
	t.Helper()
	if testing.Short() {
		t.Skip("starts etcd")
	}
	st, log := store.New(etcdtest.New(t, 1).Client, clock.System{}), slog.New(slog.DiscardHandler)
	w := &cloneWorld{T: t, s: New(&svc.Env{Store: st, Clock: clock.System{}, Log: log, Node: ids.New(), Events: event.NewLog(st, "n1", clock.System{}, log)}, nil, nil)}
	node := &model.Node{Meta: model.Meta{Name: "n1", ID: w.s.env.Node}}
	pool := &model.Pool{Meta: model.Meta{Name: "pool"}, Spec: model.PoolSpec{Copies: 1, MinISR: 1, Domain: model.DomainDisk}}
	_, err := store.Create(t.Context(), st, node)
	w.must(err)
	_, err = store.Create(t.Context(), st, pool)
	w.must(err)
	disk := &model.Disk{Meta: model.Meta{Name: "d1"}, Spec: model.DiskSpec{Node: node.ID, Pool: pool.ID, Size: 100 << 30}, Status: model.DiskStatus{State: model.DiskActive, Data: 90 << 30}}
	_, err = store.Create(t.Context(), st, disk)
	w.must(err)
	w.commit(store.NewTx().Put(store.SessionKey(node.ID), store.Session{Node: node.ID}))
	w.vol, err = w.s.Create(t.Context(), &model.Volume{Meta: model.Meta{Name: "base"}, Spec: model.VolumeSpec{Pool: "pool", Size: 3 << 30}}, Owner{})
	w.must(err)
	rec := w.rec(w.vol)
	rec.Cfg.Snap = repl.SnapContext{Next: 2, List: []repl.Snapshot{{Number: 1, Name: "one"}, {Number: 2, Name: "two"}}}
	w.commit(store.NewTx().Put(records.CfgKey(w.vol.ID), rec.Cfg))
	return w
}

func (w *cloneWorld) must(err error) {
	w.Helper()
	if err != nil {
		w.Fatal(err)
	}
}

func (w *cloneWorld) commit(tx *store.Tx) {
	w.Helper()
	_, err := w.s.env.Store.Commit(w.Context(), tx)
	w.must(err)
}

func (w *cloneWorld) rec(v *model.Volume) *repl.VolumeRecord {
	w.Helper()
	rec, err := records.Volume(w.Context(), w.s.env.Store, v.ID)
	w.must(err)
	return rec
}

func (w *cloneWorld) clone(name string, number uint32) (*model.Volume, error) {
	return w.s.Clone(w.Context(), &model.Volume{Meta: model.Meta{Name: name}, Spec: model.VolumeSpec{Pool: "pool", Size: size.Bytes(w.rec(w.vol).Cfg.SizeBytes)}}, Owner{}, w.vol, number)
}

// refusedFor demands a conflict that names the clone and what to do.
func (w *cloneWorld) refusedFor(err error, name string) {
	w.Helper()
	if errs.Kind(err) != errs.Conflict || !strings.Contains(err.Error(), "still read it: "+name) || !strings.Contains(errs.Hint(err), "volume show "+name) {
		w.Errorf("%v, hint %q", err, errs.Hint(err))
	}
}

func TestCloneAndWhatItPins(t *testing.T) {
	w := newCloneWorld(t)
	k, err := w.clone("copy", 2)
	w.must(err)
	rec := w.rec(k)
	if rec.Cfg.Parent != (repl.Parent{Volume: w.vol.ID, Snapshot: 2}) || rec.Cfg.SizeBytes != 3<<30 || rec.Cfg.Snap.Next != 1 || len(rec.Seg.Map) != 3 {
		t.Fatalf("%+v", rec)
	}
	info, err := w.s.Get(t.Context(), "copy")
	if err != nil || info.Status.Parent != "base@two" {
		t.Fatalf("%+v, %v", info, err)
	}
	if _, err := w.clone("copy", 2); errs.Kind(err) != errs.Conflict || !strings.Contains(err.Error(), "name is taken") {
		t.Errorf("a name that is taken: %v", err)
	}
	if _, err := w.s.Clone(t.Context(), &model.Volume{Meta: model.Meta{Name: "x"}, Spec: model.VolumeSpec{Pool: "pool", Size: 3 << 30}}, Owner{}, k, 1); errs.Kind(err) != errs.Conflict {
		t.Errorf("a clone of a clone: %v", err)
	}
	// The snapshot and its volume stay; another snapshot may go, and is not cloned any more.
	w.refusedFor(w.s.leaveSnapshot(t.Context(), w.vol, 2), "copy")
	w.refusedFor(w.s.Delete(t.Context(), w.vol.ID), "copy")
	w.must(w.s.leaveSnapshot(t.Context(), w.vol, 1))
	if _, err := w.clone("late", 1); errs.Kind(err) != errs.Conflict || !strings.Contains(err.Error(), "being deleted") {
		t.Errorf("a snapshot that leaves: %v", err)
	}
	// A clone that is deleted gives them free.
	w.must(w.s.Delete(t.Context(), k.ID))
	c, err := store.GetRecord[repl.Clones](t.Context(), w.s.env.Store, records.ClonesKey(w.vol.ID))
	if err != nil || len(c.Value.List) != 0 {
		t.Fatalf("%+v, %v", c.Value, err)
	}
	// One that is flattened does, too; its line is dropped by the next who looks.
	k, err = w.clone("flat", 2)
	w.must(err)
	_, next := repl.EndFlatten(*w.rec(k))
	w.commit(store.NewTx().Put(records.CfgKey(k.ID), next.Cfg))
	w.must(w.s.leaveSnapshot(t.Context(), w.vol, 2))
	c, err = store.GetRecord[repl.Clones](t.Context(), w.s.env.Store, records.ClonesKey(w.vol.ID))
	if err != nil || len(c.Value.List) != 0 || !slices.Contains(c.Value.Leaving, 2) {
		t.Fatalf("%+v, %v", c.Value, err)
	}
	w.must(w.s.Delete(t.Context(), w.vol.ID))
	if c, err = store.GetRecord[repl.Clones](t.Context(), w.s.env.Store, records.ClonesKey(w.vol.ID)); err != nil || c.Revision != 0 {
		t.Errorf("the record outlives its volume: %+v, %v", c, err)
	}
}

// Cloning a snapshot and deleting it, at one time: one of them wins.
func TestCloneRacesDelete(t *testing.T) {
	w := newCloneWorld(t)
	begin := make(chan struct{})
	var cloned, left error
	done := make(chan struct{}, 2)
	go func() { <-begin; _, cloned = w.clone("copy", 2); done <- struct{}{} }()
	go func() { <-begin; left = w.s.leaveSnapshot(w.Context(), w.vol, 2); done <- struct{}{} }()
	close(begin)
	<-done
	<-done
	if (cloned == nil) == (left == nil) {
		t.Fatalf("cloned: %v, deleted: %v", cloned, left)
	}
}
