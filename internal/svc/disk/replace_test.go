package disk

import (
	"context"
	"errors"
	"log/slog"
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
)

// replaceWorld has a pool of three nodes with a disk each, 4 GiB on each in four
// segments of one volume, and blank disks of nodes 2 and 3.
func replaceWorld() (w *world, d [6]*model.Disk) {
	p := &model.Pool{Meta: model.Meta{ID: ids.ID{1}, Name: "p"}, Spec: model.PoolSpec{Copies: 3}}
	w = &world{pool: p, domain: map[ids.ID]string{}, volumes: map[ids.ID]*repl.VolumeRecord{}}
	v := &repl.VolumeRecord{ID: ids.ID{2}, Cfg: repl.Cfg{Pool: p.ID}, Seg: repl.Segments{Map: [][]uint16{{0, 1, 2}, {0, 1, 2}, {0, 1, 2}, {0, 1, 2}}}}
	for i := range d {
		node := byte(i%3 + 1)
		d[i] = &model.Disk{Meta: model.Meta{ID: ids.ID{15: byte(i + 1)}, Name: "d" + string(rune('1'+i))}, Spec: model.DiskSpec{Node: ids.ID{14: node}},
			Status: model.DiskStatus{State: model.DiskActive, Data: 100 * size.GiB}}
		if i < 3 {
			d[i].Spec.Pool, d[i].Status.Used = p.ID, 4*size.GiB
			v.Seg.Disks = append(v.Seg.Disks, d[i].ID)
		}
		w.domain[d[i].ID] = d[i].Spec.Node.String()
		w.all = append(w.all, d[i])
	}
	w.volumes[v.ID] = v
	return w, d
}

func TestMayReplace(t *testing.T) {
	fails := func(d *model.Disk) { d.Status.State, d.Status.Data, d.Status.Used = model.DiskFailed, 0, 0 }
	for _, c := range []struct {
		name    string
		change  func(d [6]*model.Disk)
		old, by int
		kind    error
		words   string
	}{
		{"a living disk", nil, 1, 4, nil, ""},
		{"a dead disk", func(d [6]*model.Disk) { fails(d[1]) }, 1, 4, nil, ""},
		{"itself", nil, 1, 1, errs.Invalid, "same disk"},
		{"a disk in no pool", nil, 4, 1, errs.Conflict, "d5 is in no pool"},
		{"by a dead disk", func(d [6]*model.Disk) { fails(d[4]) }, 1, 4, errs.Conflict, "d5 is failed"},
		{"by one that goes itself", func(d [6]*model.Disk) { d[4].Spec.Retire = true }, 1, 4, errs.Conflict, "being retired itself"},
		{"by one of another pool", func(d [6]*model.Disk) { d[4].Spec.Pool = ids.ID{9} }, 1, 4, errs.Conflict, "another pool"},
		{"a dead one, whose fellow holds much else", func(d [6]*model.Disk) {
			fails(d[1])
			d[2].Status.Used, d[0].Status.Used, d[4].Status.Data = 90*size.GiB, 2*size.GiB, 3*size.GiB
		}, 1, 4, nil, ""},
		{"by one of another node", nil, 1, 5, errs.Conflict, "disks in 2 failure domains"},
		{"by one in use of another node", nil, 1, 2, errs.Conflict, "disks in 2 failure domains"},
		{"by one that is too small", func(d [6]*model.Disk) { d[4].Status.Data = 3 * size.GiB }, 1, 4, errs.Exhausted, "4GiB of data, 3GiB are free there"},
		{"a dead one by one that is too small", func(d [6]*model.Disk) { fails(d[1]); d[4].Status.Data = 3 * size.GiB }, 1, 4, errs.Exhausted, "4GiB of data, 3GiB are free there"},
	} {
		w, d := replaceWorld()
		if c.change != nil {
			c.change(d)
		}
		err := w.mayReplace(d[c.old], d[c.by], true)
		if c.kind == nil {
			if err != nil {
				t.Errorf("%s: %v", c.name, err)
			}
			continue
		}
		if !errors.Is(err, c.kind) || !strings.Contains(err.Error(), c.words) || !strings.HasPrefix(err.Error(), "replace disk "+d[c.old].Name+" by "+d[c.by].Name) || errs.Hint(err) == "" {
			t.Errorf("%s: got %v (%s), want %v that says %q", c.name, err, errs.Hint(err), c.kind, c.words)
		}
	}
	w, d := replaceWorld()
	if err := w.mayReplace(d[1], d[4], false); !errors.Is(err, errs.Conflict) || !strings.Contains(err.Error(), "is down") {
		t.Errorf("by a disk of a node that is down: %v", err)
	}
}

// What a replacement would do is said before it is done: also what the new disk cannot
// have, because another copy of it fails together with it.
func TestReplacementIsTold(t *testing.T) {
	w, d := replaceWorld()
	if s, steps := w.replacement(d[1], d[4]); s != "would move 4 segments of d2 to d5, and use d2 no more" || len(steps) != 1 || !strings.Contains(steps[0], "d5 joins pool p") {
		t.Errorf("%s, %q", s, steps)
	}
	d[1].Status.State, d[4].Spec.Pool = model.DiskFailed, w.pool.ID
	w.volumes[ids.ID{2}].Seg.Map[3] = []uint16{1, 0} // no copy on node 3
	if s, steps := w.replacement(d[1], d[5]); s != "would rebuild 1 segments of d2 to d6, and use d2 no more" || len(steps) != 2 || !strings.Contains(steps[1], "3 segments go to other disks") {
		t.Errorf("%s, %q", s, steps)
	}
}

// A dead disk is made up for when the copies that were made for it are in sync, not
// when they are begun.
func TestRebuiltIsInSync(t *testing.T) {
	w, d := replaceWorld()
	v := w.volumes[ids.ID{2}]
	v.Own.Out = map[ids.ID]repl.Out{d[1].ID: {Reason: repl.OutDiskFailed}}
	_, next, err := repl.MoveCopies(*v, repl.Move{Old: d[1].ID, New: d[4].ID})
	if err != nil {
		t.Fatal(err)
	}
	vols := map[ids.ID]*repl.VolumeRecord{v.ID: &next}
	if n := segmentsOn(vols, d[1].ID); n != 0 {
		t.Errorf("%d segments are still on the dead disk", n)
	}
	if n := joining(vols, w.pool.ID); n != 4 {
		t.Errorf("%d copies are to be in sync yet, want 4", n)
	}
	if n := joining(vols, ids.ID{9}); n != 0 {
		t.Errorf("%d copies of another pool", n)
	}
	next.Own.Out = nil
	if n := joining(vols, w.pool.ID); n != 0 {
		t.Errorf("in sync: %d copies are to be", n)
	}
	_, moved, err := repl.MoveCopies(*v, repl.Move{Old: d[0].ID, New: d[3].ID, Live: true})
	if err != nil {
		t.Fatal(err)
	}
	if n := joining(map[ids.ID]*repl.VolumeRecord{v.ID: &moved}, w.pool.ID); n != 0 {
		t.Errorf("a move from a disk in sync counts: %d", n)
	}
}

// lists is a storage process whose lists of claimed disks are given one after another.
type lists struct {
	Storage
	then [][]Device
}

func (l *lists) Claimed(context.Context) ([]Device, error) {
	out := l.then[0]
	if len(l.then) > 1 {
		l.then = l.then[1:]
	}
	return out, nil
}

// A disk that is removed while its state is reported does not come back.
func TestRemovedDiskIsNotAdopted(t *testing.T) {
	if testing.Short() {
		t.Skip("starts etcd")
	}
	st := store.New(etcdtest.New(t, 1).Client, clock.System{})
	log := slog.New(slog.DiscardHandler)
	env := &svc.Env{Store: st, Events: event.NewLog(st, "n1", clock.System{}, log), Node: ids.New(), NodeName: "n1", Clock: clock.System{}, Log: log}
	gone, there := Device{Path: "/dev/a", ID: ids.New(), State: model.DiskActive}, Device{Path: "/dev/b", ID: ids.New(), State: model.DiskActive}
	s := New(env, &lists{then: [][]Device{{gone, there}, {there}}}, nil)
	if err := s.report(t.Context()); err != nil {
		t.Fatal(err)
	}
	all, err := store.List[model.Disk](t.Context(), st)
	if err != nil || len(all) != 1 || all[0].ID != there.ID {
		t.Errorf("objects of disks: %+v, %v", all, err)
	}
}
