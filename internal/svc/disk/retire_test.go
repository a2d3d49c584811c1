package disk

import (
	"errors"
	"testing"

	"roseau/internal/base/errs"
	"roseau/internal/base/ids"
	"roseau/internal/base/size"
	"roseau/internal/model"
)

func TestMayRetire(t *testing.T) {
	pool := &model.Pool{Meta: model.Meta{ID: ids.ID{1}, Name: "p"}, Spec: model.PoolSpec{Copies: 3}}
	mk := func(n, node byte, used size.Bytes) *model.Disk {
		return &model.Disk{Meta: model.Meta{ID: ids.ID{15: n}, Name: string('a' + rune(n))},
			Spec:   model.DiskSpec{Node: ids.ID{14: node}, Pool: pool.ID},
			Status: model.DiskStatus{State: model.DiskActive, Data: 100 * size.GiB, Used: used}}
	}
	a1, a2, b, c := mk(1, 1, 40*size.GiB), mk(2, 1, 30*size.GiB), mk(3, 2, 10*size.GiB), mk(4, 3, 10*size.GiB)
	d := mk(5, 4, 0)
	with := func(x *model.Disk, change func(*model.Disk)) *model.Disk { y := *x; change(&y); return &y }
	free := with(mk(6, 2, 0), func(d *model.Disk) { d.Spec.Pool = ids.ID{} })
	for _, tc := range []struct {
		name string
		old  *model.Disk
		all  []*model.Disk
		by   *model.Disk
		kind error
	}{
		{"another disk on its node", a1, []*model.Disk{a1, a2, b, c}, nil, nil},
		{"the only one of its node", b, []*model.Disk{a1, a2, b, c}, nil, errs.Conflict},
		{"a fourth node takes over", b, []*model.Disk{a1, a2, b, c, d}, nil, nil},
		{"the other one is being retired", a1, []*model.Disk{a1, with(a2, func(d *model.Disk) { d.Spec.Retire = true }), b, c}, nil, errs.Conflict},
		{"the other one is dead", a1, []*model.Disk{a1, with(a2, func(d *model.Disk) { d.Status.State = model.DiskFailed }), b, c}, nil, errs.Conflict},
		{"no room on its node", a1, []*model.Disk{a1, with(a2, func(d *model.Disk) { d.Status.Used = 70 * size.GiB }), b, c}, nil, errs.Exhausted},
		{"a disk that joins for it", b, []*model.Disk{a1, a2, b, c, free}, free, nil},
		{"a free disk that does not join", b, []*model.Disk{a1, a2, b, c, free}, nil, errs.Conflict},
		{"a disk of a node that has another one", b, []*model.Disk{a1, a2, b, c}, a2, errs.Conflict},
	} {
		domain := map[ids.ID]string{}
		for _, x := range tc.all {
			domain[x.ID] = x.Spec.Node.String()
		}
		err := (&world{pool: pool, all: tc.all, domain: domain}).mayRetire(tc.old, tc.by)
		if tc.kind == nil && err != nil || tc.kind != nil && (!errors.Is(err, tc.kind) || errs.Hint(err) == "") {
			t.Errorf("%s: %v", tc.name, err)
		}
	}

	// One machine, failure domain disk: the copies lie on different disks.
	one := &model.Pool{Meta: model.Meta{ID: ids.ID{1}, Name: "p"}, Spec: model.PoolSpec{Copies: 2, Domain: model.DomainDisk}}
	all := []*model.Disk{a1, a2}
	domain := map[ids.ID]string{a1.ID: "1", a2.ID: "2"}
	if err := (&world{pool: one, all: all, domain: domain}).mayRetire(a1, nil); !errors.Is(err, errs.Conflict) {
		t.Errorf("one of two disks: %v", err)
	}
	a3 := mk(7, 1, 0)
	domain[a3.ID] = "3"
	if err := (&world{pool: one, all: append(all, a3), domain: domain}).mayRetire(a1, nil); err != nil {
		t.Errorf("one of three disks: %v", err)
	}
}
