package volume

import (
	"testing"

	"roseau/internal/base/ids"
	"roseau/internal/base/size"
	"roseau/internal/core/place"
	"roseau/internal/model"
)

// A retired disk is emptied while its copies are in sync, a dead one at once; the
// disk that a person named to replace it is taken though another has more room.
func TestPlanEmptiesARetiredDisk(t *testing.T) {
	for _, c := range []struct {
		name string
		by   ids.ID
		dead bool
		want ids.ID
	}{
		{"wherever there is room", ids.ID{}, false, tid(12)},
		{"the one that was named", tid(13), false, tid(13)},
		{"one that holds a copy already cannot", tid(21), false, tid(12)},
		{"a dead disk", tid(13), true, tid(13)},
	} {
		view, disks, alive := testWorld()
		disks = append(disks, &model.Disk{Meta: model.Meta{ID: tid(13), Name: "n1-d3"}, Spec: model.DiskSpec{Node: tid(1), Pool: tid(100)}, Status: model.DiskStatus{State: model.DiskActive}})
		view.Disks[tid(100)] = append(view.Disks[tid(100)], place.Disk{ID: tid(13), Name: "n1-d3", Node: tid(1), Domain: tid(1).String(), Data: 50 * size.GiB})
		view.Names.DiskNode[tid(13)] = tid(1)
		w := &world{view: view, disks: disks, alive: alive, dead: map[ids.ID]bool{}}
		state := model.DiskRetired
		if c.dead {
			state = model.DiskFailed
			w.dead[tid(11)] = true
		}
		disks[0].Status.State, disks[0].Spec.Retire, disks[0].Spec.ReplacedBy = state, true, c.by
		view.Disks[tid(100)][0].Unusable = string(state)
		v := volumeOn(201, 1, 11, 21, 31)
		view.Volumes[v.ID] = v
		got := plan(w)
		if len(got) != 1 || len(got[0].replace) != 1 {
			t.Errorf("%s: %+v", c.name, got)
			continue
		}
		if x := got[0].replace[0]; x.Old != tid(11) || x.New != c.want || x.Live == c.dead {
			t.Errorf("%s: %+v", c.name, x)
		}
	}
}
