package volume

import (
	"fmt"
	"testing"
	"time"

	"roseau/internal/base/clock"
	"roseau/internal/base/ids"
	"roseau/internal/base/size"
	"roseau/internal/core/place"
	"roseau/internal/core/repl"
	"roseau/internal/driver/storagectl"
	"roseau/internal/driver/volumectl"
	"roseau/internal/model"
	"roseau/internal/store"
	"roseau/internal/svc"
	"roseau/internal/svc/pool"
	"roseau/internal/svc/records"
)

func tid(n int) ids.ID { return ids.MustParse(fmt.Sprintf("00000000-0000-4000-8000-%012d", n)) }

// world is three nodes with two disks each; disk 11 is disk 1 of node 1.
func testWorld() (*pool.View, []*model.Disk, map[ids.ID]store.Session) {
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
			view.Disks[tid(100)] = append(view.Disks[tid(100)], place.Disk{ID: o.ID, Name: o.Name, Node: tid(n), Domain: tid(n).String(), Data: 100 * size.GiB})
		}
	}
	view.Names = records.NewNames(disks, nodes)
	view.Pools = []*model.Pool{{Meta: model.Meta{ID: tid(100), Name: "p"}, Spec: model.PoolSpec{Copies: 3}}}
	return view, disks, alive
}

func volumeOn(id int, epoch uint64, disks ...int) *repl.VolumeRecord {
	v := &repl.VolumeRecord{ID: tid(id), Own: repl.Own{Epoch: epoch, Out: map[ids.ID]repl.Out{}}, Cfg: repl.Cfg{Copies: 3, Pool: tid(100), State: repl.VolumeLive}}
	var row []uint16
	for i, d := range disks {
		v.Seg.Disks = append(v.Seg.Disks, tid(d))
		row = append(row, uint16(i))
	}
	v.Seg.Map = [][]uint16{row}
	return v
}

func TestPlan(t *testing.T) {
	view, disks, alive := testWorld()
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
	got := plan(&world{view: view, disks: disks, alive: alive, dead: map[ids.ID]bool{tid(12): true}})
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
	if got := plan(&world{view: view, disks: disks, alive: alive}); len(got) != 0 {
		t.Errorf("nothing can come back from nodes that are down: %v", got)
	}
}

func TestHealth(t *testing.T) {
	view, _, _ := testWorld()
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

// A dead node's copies go to a node that holds none, segment by segment; where
// there is none the volume says so, and nothing else waits for it.
func TestPlanOfADeadNode(t *testing.T) {
	view, disks, alive := testWorld()
	v := volumeOn(201, 1, 11, 21, 31)
	view.Volumes[v.ID] = v
	delete(alive, tid(3))
	dead := map[ids.ID]bool{tid(31): true, tid(32): true}
	for i := range view.Disks[tid(100)] {
		if view.Disks[tid(100)][i].Node == tid(3) {
			view.Disks[tid(100)][i].Unusable = "on a node that is down"
		}
	}
	w := &world{view: view, disks: disks, alive: alive, dead: dead}
	if got := plan(w); len(got) != 1 || got[0].stuck == "" || len(got[0].replace) != 0 {
		t.Fatalf("three nodes, one of them gone: %+v", got)
	}
	view.Disks[tid(100)] = append(view.Disks[tid(100)], place.Disk{ID: tid(41), Node: tid(4), Domain: tid(4).String(), Data: 100 * size.GiB})
	got := plan(w)
	if len(got) != 1 || got[0].stuck != "" || fmt.Sprint(got[0].replace) != fmt.Sprint([]volumectl.Replace{{Old: tid(31), New: tid(41), Segments: []uint32{0}}}) {
		t.Fatalf("%+v", got)
	}
}

// While something is to be repaired nothing is moved; then one copy at a time
// goes to the disk that was claimed late.
func TestPlanMovesToANewDisk(t *testing.T) {
	view, disks, alive := testWorld()
	for i := range 12 {
		v := volumeOn(201+i, 1, 11, 21, 31)
		view.Volumes[v.ID] = v
	}
	for i := range view.Disks[tid(100)] {
		if d := &view.Disks[tid(100)][i]; d.ID == tid(11) || d.ID == tid(21) || d.ID == tid(31) {
			d.Promised = 12 * size.GiB
		}
	}
	w := &world{view: view, disks: disks, alive: alive}
	got := plan(w)
	if len(got) != 1 || !got[0].moves || !got[0].replace[0].Live || w.view.Names.DiskNode[got[0].replace[0].Old] != w.view.Names.DiskNode[got[0].replace[0].New] {
		t.Fatalf("%+v", got)
	}
	view.Volumes[tid(201)].Own.Out[tid(21)] = repl.Out{Reason: repl.OutRestarted}
	for _, r := range plan(w) {
		if r.moves {
			t.Fatalf("moved while a copy is out: %+v", r)
		}
	}
}

// A dead disk of a pool whose domains are disks: every segment goes to a disk
// that has no copy of it, though that one holds others of the volume.
func TestPlanOnOneMachine(t *testing.T) {
	view, disks, alive := testWorld()
	ds := view.Disks[tid(100)]
	for i := range ds {
		ds[i].Domain, ds[i].Node = ds[i].ID.String(), tid(1)
	}
	v := volumeOn(201, 1, 11, 12)
	v.Seg = repl.Segments{Disks: []ids.ID{tid(11), tid(12), tid(21)}, Map: [][]uint16{{0, 1}, {0, 2}, {1, 2}}}
	v.Cfg.Copies = 2
	view.Volumes[v.ID] = v
	view.Disks[tid(100)] = ds[:3]
	got := plan(&world{view: view, disks: disks, alive: alive, dead: map[ids.ID]bool{tid(11): true}})
	want := []volumectl.Replace{{Old: tid(11), New: tid(12), Node: tid(1), Segments: []uint32{1}}, {Old: tid(11), New: tid(21), Node: tid(2), Segments: []uint32{0}}}
	if len(got) != 1 || fmt.Sprint(got[0].replace) != fmt.Sprint(want) {
		t.Fatalf("%+v", got)
	}
}

func TestAdmit(t *testing.T) {
	var list []repair
	for i := range 8 {
		list = append(list, repair{copies: 1 + i/2, replace: []volumectl.Replace{{}}})
	}
	list = append(list, repair{}, repair{moves: true, replace: []volumectl.Replace{{}}})
	if got := admit(list, 0, 0); len(got) != maxRebuilds+1 || got[4].replace != nil {
		t.Errorf("four rebuilds and the one that only brings back: %+v", got)
	}
	if got := admit(list, maxRebuilds, 0); len(got) != 3 || got[1].copies != 1 {
		t.Errorf("a last copy does not wait: %+v", got)
	}
	if got := admit(list[9:], 0, 0); len(got) != 1 {
		t.Errorf("a move while nothing is rebuilt: %+v", got)
	}
}

func TestStrays(t *testing.T) {
	v := volumeOn(201, 5, 11, 21, 31)
	v.Own.CfgVersion = 9
	vols := map[ids.ID]*repl.VolumeRecord{v.ID: v}
	old := storagectl.Copy{Disk: tid(12), Volume: v.ID, Promise: repl.Promise{Epoch: 4}, CfgVersion: 8}
	change := func(f func(*storagectl.Copy)) storagectl.Copy { c := old; f(&c); return c }
	for _, c := range []struct {
		name string
		copy storagectl.Copy
		want int
	}{
		{"lies elsewhere", old, 1},
		{"named by a segment", change(func(c *storagectl.Copy) { c.Disk = tid(11) }), 0},
		{"of a volume that etcd does not know", change(func(c *storagectl.Copy) { c.Volume = tid(999) }), 0},
		{"was told what etcd has forgotten", change(func(c *storagectl.Copy) { c.CfgVersion = 10 }), 0},
		{"was told just this", change(func(c *storagectl.Copy) { c.CfgVersion = 9 }), 0},
		{"promised an epoch that etcd does not know", change(func(c *storagectl.Copy) { c.Promise.Epoch = 6 }), 0},
		{"another generation", change(func(c *storagectl.Copy) { c.Promise.Generation.Volume = 1 }), 0},
		{"another holder of this epoch", change(func(c *storagectl.Copy) { c.Promise.Epoch, c.Promise.Nonce = 5, tid(77) }), 0},
	} {
		if got := strays([]storagectl.Copy{c.copy}, vols); len(got) != c.want {
			t.Errorf("%s: %v", c.name, got)
		}
	}
	v.Cfg.State = repl.VolumeDeleting
	if got := strays([]storagectl.Copy{old}, vols); len(got) != 0 {
		t.Errorf("a tomb says what goes: %v", got)
	}
}

// An idle volume of which a rollback is under way is opened, and one whose copies
// here wait for a writer's word about merges, if all copies are in sync.
func TestIdleVolumesAreOpened(t *testing.T) {
	view, disks, alive := testWorld()
	back, plain, out := volumeOn(201, 1, 11, 21, 31), volumeOn(202, 1, 12, 21, 31), volumeOn(203, 1, 11, 22, 31)
	back.Cfg.Rollback = 3
	out.Own.Out[tid(22)] = repl.Out{}
	for _, v := range []*repl.VolumeRecord{back, plain} {
		view.Volumes[v.ID] = v
	}
	if list := plan(&world{view: view, disks: disks, alive: alive}); len(list) != 1 || list[0].vol != back || len(list[0].replace) != 0 {
		t.Errorf("%+v", list)
	}
	view.Volumes[out.ID] = out
	got := stuckMerges([]storagectl.Copy{
		{Disk: tid(11), Volume: back.ID}, {Disk: tid(12), Volume: plain.ID, MergeStuck: true}, {Disk: tid(21), Volume: plain.ID, MergeStuck: true},
		{Disk: tid(11), Volume: out.ID, MergeStuck: true}, {Disk: tid(11), Volume: tid(299), MergeStuck: true},
	}, view.Volumes)
	if len(got) != 1 || got[0] != plain.ID {
		t.Errorf("opened for merges: %v", got)
	}
}

// A volume down to its last copy is named with where that is; one of one copy never is.
func TestLastCopiesAreNamed(t *testing.T) {
	view, _, _ := testWorld()
	two, last, single, gone := volumeOn(201, 1, 11, 21, 31), volumeOn(202, 1, 11, 21, 31), volumeOn(203, 1, 11), volumeOn(204, 1, 11, 21)
	two.Own.Out[tid(11)] = repl.Out{}
	last.Own.Out[tid(11)], last.Own.Out[tid(31)] = repl.Out{}, repl.Out{}
	single.Cfg.Copies = 1
	gone.Own.Out[tid(11)], gone.Cfg.State = repl.Out{}, repl.VolumeDeleting
	for _, v := range []*repl.VolumeRecord{two, last, single, gone} {
		view.Volumes[v.ID] = v
	}
	got := alone(view)
	if len(got) != 1 || got[last.ID] != "on n2-d1 of n2" {
		t.Errorf("got %v", got)
	}
}

// handClock is set by hand.
type handClock struct{ now clock.Instant }

func (c *handClock) Now() clock.Instant { return c.now }
func (c *handClock) Wall() time.Time    { return time.Unix(0, int64(c.now)) }

// A node whose daemon lives and whose storage process does not answer is rebuilt as
// one that is off: after the pool's time, and not if the process comes back before.
func TestNodeWithoutStorageIsRebuilt(t *testing.T) {
	view, disks, alive := testWorld()
	c := &handClock{now: clock.Instant(time.Hour)}
	p := &planner{s: &Service{env: &svc.Env{Clock: c}}, dead: map[ids.ID]clock.Instant{}, down: map[ids.ID]clock.Instant{}}
	says := func(storage bool) map[string]store.Record[records.NodeReport] {
		return map[string]store.Record[records.NodeReport]{records.NodeReportKey(tid(2)): {Value: records.NodeReport{Storage: storage}, Revision: 1}}
	}
	step := func(after time.Duration, storage bool, want int) {
		t.Helper()
		c.now = c.now.Add(after)
		p.notice(disks, alive, says(storage))
		dead := p.deadNow(view, disks)
		if len(dead) != want || want > 0 && (!dead[tid(21)] || !dead[tid(22)]) {
			t.Errorf("storage %v: dead are %v, want %d disks of node 2", storage, dead, want)
		}
	}
	step(0, false, 0)
	step(model.DefaultRebuildAfter-time.Second, false, 0)
	step(0, true, 0)
	step(2*time.Second, false, 0)
	step(model.DefaultRebuildAfter, false, 2)
	step(time.Second, true, 0)
}
