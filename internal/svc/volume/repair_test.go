package volume

import (
	"fmt"
	"testing"

	"roseau/internal/base/ids"
	"roseau/internal/base/size"
	"roseau/internal/core/place"
	"roseau/internal/core/repl"
	"roseau/internal/model"
	"roseau/internal/store"
	"roseau/internal/svc/pool"
	"roseau/internal/svc/records"
)

func tid(n int) ids.ID { return ids.MustParse(fmt.Sprintf("00000000-0000-4000-8000-%012d", n)) }

// world is three nodes with two disks each; disk 11 is disk 1 of node 1.
func world() (*pool.View, []*model.Disk, map[ids.ID]store.Session) {
	view := &pool.View{Disks: map[ids.ID][]place.Disk{}, Volumes: map[ids.ID]*repl.VolumeRecord{}}
	var disks []*model.Disk
	var nodes []*model.Node
	alive := map[ids.ID]store.Session{}
	for n := 1; n <= 3; n++ {
		nodes = append(nodes, &model.Node{Meta: model.Meta{ID: tid(n), Name: fmt.Sprintf("n%d", n)}})
		alive[tid(n)] = store.Session{}
		for d := 1; d <= 2; d++ {
			o := &model.Disk{Meta: model.Meta{ID: tid(10*n + d), Name: fmt.Sprintf("n%d-d%d", n, d)}, Spec: model.DiskSpec{Node: tid(n), Pool: tid(100)}, Status: model.DiskStatus{State: model.DiskActive}}
			disks = append(disks, o)
			view.Disks[tid(100)] = append(view.Disks[tid(100)], place.Disk{ID: o.ID, Name: o.Name, Node: tid(n), Data: 100 * size.GiB})
		}
	}
	view.Names = records.NewNames(disks, nodes)
	return view, disks, alive
}

func volumeOn(id int, epoch uint64, disks ...int) *repl.VolumeRecord {
	v := &repl.VolumeRecord{ID: tid(id), Own: repl.Own{Epoch: epoch, Out: map[ids.ID]repl.Out{}}, Cfg: repl.Cfg{Copies: 3, Pool: tid(100)}}
	var row []uint16
	for i, d := range disks {
		v.Seg.Disks = append(v.Seg.Disks, tid(d))
		row = append(row, uint16(i))
	}
	v.Seg.Map = [][]uint16{row}
	return v
}

func TestPlan(t *testing.T) {
	view, disks, alive := world()
	fine := volumeOn(201, 1, 11, 21, 31)
	hit := volumeOn(202, 1, 12, 21, 31)
	late := volumeOn(203, 2, 11, 22, 31)
	late.Own.Out[tid(22)] = repl.Out{Reason: "connection lost"}
	last := volumeOn(204, 2, 11, 22, 32)
	last.Own.Out[tid(22)], last.Own.Out[tid(32)] = repl.Out{}, repl.Out{}
	for _, v := range []*repl.VolumeRecord{fine, hit, late, last} {
		view.Volumes[v.ID] = v
	}
	view.Disks[tid(100)][1].Unusable = "missing" // n1-d2
	got := plan(view, disks, alive, map[ids.ID]bool{tid(12): true})
	text := ""
	for _, r := range got {
		text += view.Names.DiskName(r.vol.Seg.Disks[0]) + "/" + r.vol.ID.String()[33:]
		for _, x := range r.replace {
			text += fmt.Sprintf(" %s->%s", view.Names.DiskName(x.Old), view.Names.DiskName(x.New))
		}
		text += "; "
	}
	// The volume with one copy first; then those with two, and with three.
	if want := "n1-d1/204; n1-d1/203; n1-d2/202 n1-d2->n1-d1; "; text != want {
		t.Errorf("got  %s\nwant %s", text, want)
	}
	delete(alive, tid(2))
	delete(alive, tid(3))
	if got := plan(view, disks, alive, nil); len(got) != 0 {
		t.Errorf("nothing can come back from nodes that are down: %v", got)
	}
}

func TestHealth(t *testing.T) {
	view, _, _ := world()
	v := volumeOn(201, 3, 11, 21, 31)
	check := func(want model.Health, copies int, up map[ids.ID]bool) {
		t.Helper()
		if st := records.Health(v, view.Names, up); st.Health != want || st.Copies != copies {
			t.Errorf("got %s, %d copies; want %s, %d", st.Health, st.Copies, want, copies)
		}
	}
	check(model.Healthy, 3, nil)
	v.Own.Out[tid(21)] = repl.Out{Reason: "disk failed"}
	check(model.Degraded, 2, nil)
	v.Own.Out[tid(31)] = repl.Out{}
	check(model.HealthOne, 1, nil)
	check(model.Waiting, 1, map[ids.ID]bool{tid(21): true, tid(31): true})
}
