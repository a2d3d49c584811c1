package place

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"roseau/internal/base/errs"
	"roseau/internal/base/ids"
	"roseau/internal/base/size"
)

func id(n int) ids.ID { return ids.MustParse(fmt.Sprintf("00000000-0000-4000-8000-%012d", n)) }

func three() []Node {
	var out []Node
	for i := 1; i <= 3; i++ {
		out = append(out, Node{ID: id(i), Name: fmt.Sprintf("srv%d", i), CPUs: 2, MemoryFree: 4 * size.GiB, Storage: true, Networks: []string{"lan"}})
	}
	return out
}

func onAll() []Volume {
	return []Volume{{Name: "web-0", Groups: [][]ids.ID{{id(1), id(2), id(3)}}}}
}

func TestChooseNode(t *testing.T) {
	req := Request{VM: "web", CPUs: 1, Memory: 2 * size.GiB, Networks: []string{"lan"}, Volumes: onAll()}
	tests := []struct {
		name   string
		change func(*Request, []Node)
		want   string // node: why, or the error
	}{
		{"all equal: by name", func(*Request, []Node) {}, "srv1: tcg, has a copy of every volume, 4GiB free, 0 machines"},
		{"excluded", func(r *Request, n []Node) { r.Exclude = map[ids.ID]string{id(1): "it runs there"} },
			"srv2: tcg, has a copy of every volume, 4GiB free, 0 machines"},
		{"kvm first", func(r *Request, n []Node) { n[2].KVM = true; n[2].MemoryFree = 3 * size.GiB },
			"srv3: kvm, has a copy of every volume, 3GiB free, 0 machines"},
		{"memory", func(r *Request, n []Node) { n[1].MemoryFree = 8 * size.GiB }, "srv2: tcg, has a copy of every volume, 8GiB free, 0 machines"},
		{"fewer machines", func(r *Request, n []Node) { n[0].VMs = 2; n[1].VMs = 1; n[2].VMs = 1 }, "srv2: tcg, has a copy of every volume, 4GiB free, 1 machine"},
		{"avoided only while others can", func(r *Request, n []Node) {
			n[0].Avoid = "quarantined"
			n[1].NotReady = "not ready"
			n[2].NotReady = "not ready"
		},
			"srv1: tcg, has a copy of every volume, 4GiB free, 0 machines, quarantined"},
		{"nobody", func(r *Request, n []Node) {
			n[0].MemoryFree = 1288490188
			n[1].Storage = false
			n[2].Networks = nil
		}, "place vm web: no node can take it: srv1: 1.2GiB free, needs 2GiB; srv2: its storage process does not answer; srv3: has no uplink for network lan"},
		{"only copy away", func(r *Request, n []Node) {
			r.Volumes = []Volume{{Name: "web-0", Groups: [][]ids.ID{{id(2)}}}}
			n[1].Storage, n[1].NotReady = false, "session lost"
		}, "place vm web: no node can take it: srv1: the only in-sync copy of volume web-0 is on srv2; srv2: session lost; srv3: the only in-sync copy of volume web-0 is on srv2"},
		{"needs kvm, too few cpus", func(r *Request, n []Node) {
			r.NeedKVM, r.CPUs = true, 2
			n[0].CPUs = 1
			n[1].NotReady = "not ready"
		}, "place vm web: no node can take it: srv1: 1 CPUs, needs 2; srv2: not ready; srv3: no working KVM, and the machine asks for kvm"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r, nodes := req, three()
			tt.change(&r, nodes)
			d, err := ChooseNode(r, nodes)
			got := d.Why
			if err != nil {
				got = err.Error()
				if !errors.Is(err, errs.Exhausted) || errs.Hint(err) == "" {
					t.Errorf("kind %v, hint %q", errs.Kind(err), errs.Hint(err))
				}
			}
			if got != tt.want {
				t.Errorf("got  %s\nwant %s", got, tt.want)
			}
			if err == nil && len(d.Refusals) != 2 {
				t.Errorf("every other node needs a reason, got %v", d.Refusals)
			}
		})
	}
}

func disks(nodes, perNode int, data size.Bytes) []Disk {
	var out []Disk
	for n := 1; n <= nodes; n++ {
		for d := 1; d <= perNode; d++ {
			out = append(out, Disk{ID: id(100*n + d), Name: fmt.Sprintf("srv%d/d%d", n, d), Node: id(n), NodeName: fmt.Sprintf("srv%d", n), Domain: fmt.Sprintf("srv%d", n), Data: data})
		}
	}
	return out
}

// TestSegmentsProperties: each row has copies on different nodes, on usable
// disks; the same input gives the same rows; load stays within a factor of two
// on equal disks.
func TestSegmentsProperties(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		copies := rapid.IntRange(1, 3).Draw(t, "copies")
		nodes := rapid.IntRange(copies, 6).Draw(t, "nodes")
		perNode := rapid.IntRange(1, 4).Draw(t, "disks")
		count := rapid.IntRange(1, 200).Draw(t, "segments")
		all := disks(nodes, perNode, 1000*size.GiB)
		order, rows, err := Segments(Rule{"p", copies, "node"}, id(7), count, ids.ID{}, all)
		if err != nil {
			t.Fatal(err)
		}
		_, again, _ := Segments(Rule{"p", copies, "node"}, id(7), count, ids.ID{}, all)
		if fmt.Sprint(rows) != fmt.Sprint(again) {
			t.Fatal("not deterministic")
		}
		nodeOf := map[ids.ID]ids.ID{}
		for _, d := range all {
			nodeOf[d.ID] = d.Node
		}
		per := map[ids.ID]int{}
		for _, row := range rows {
			seen := map[ids.ID]bool{}
			for _, i := range row {
				n := nodeOf[order[i]]
				if seen[n] {
					t.Fatalf("two copies on node %s", n)
				}
				seen[n] = true
				per[order[i]]++
			}
			if len(row) != copies {
				t.Fatalf("row %v", row)
			}
		}
		mean := count * copies / len(all)
		for d, n := range per {
			if n > 2*mean+4 {
				t.Fatalf("disk %s has %d segments, mean %d", d, n, mean)
			}
		}
	})
}

func TestSegmentsPreferAndWeights(t *testing.T) {
	all := disks(5, 1, 1000*size.GiB)
	_, rows, err := Segments(Rule{"p", 3, "node"}, id(7), 50, id(4), all)
	if err != nil {
		t.Fatal(err)
	}
	for k, row := range rows {
		if row[0] != 3 {
			t.Fatalf("segment %d: first copy on disk %d, want the preferred node's", k, row[0])
		}
	}
	all[0].Data *= 4
	_, rows, _ = Segments(Rule{"p", 1, "node"}, id(7), 300, ids.ID{}, all)
	big := 0
	for _, row := range rows {
		if row[0] == 0 {
			big++
		}
	}
	if big < 120 || big > 190 { // 4 of 8 parts of the room
		t.Errorf("the disk of half the room got %d of 300 segments", big)
	}
}

func TestSegmentsRefusal(t *testing.T) {
	all := disks(3, 1, size.GiB)
	all[2].Unusable = "failed"
	_, _, err := Segments(Rule{"p", 3, "node"}, id(7), 1, ids.ID{}, all)
	if err == nil || err.Error() != "pool p: 2 nodes with usable disks (srv3/d1 is failed), needs 3" || !strings.Contains(errs.Hint(err), "claim a disk") {
		t.Errorf("%v -> %s", err, errs.Hint(err))
	}
}

func TestTarget(t *testing.T) {
	rule := Rule{"p", 2, "node"}
	all := disks(3, 3, 10*size.GiB)
	all[4].Unusable = "failed" // srv2/d2, the other copy is on srv1
	all[3].Promised = 5 * size.GiB
	row := []ids.ID{all[0].ID}
	if got, err := Target(rule, all[4].ID, row, all); err != nil || got != all[5].ID {
		t.Errorf("the node of the old disk first: %v, %v", got, err)
	}
	for i := 3; i < 6; i++ {
		all[i].Unusable = "on a node that is down"
	}
	all[6].Promised, all[7].Promised = 2*size.GiB, 1*size.GiB
	if got, err := Target(rule, all[4].ID, row, all); err != nil || got != all[8].ID {
		t.Errorf("another domain: %v, %v", got, err)
	}
	row = append(row, all[7].ID)
	if _, err := Target(rule, all[4].ID, row, all); err == nil || err.Error() != "rebuild the copies of srv2/d2 in pool p: no usable disk in a node that has no other copy" || errs.Hint(err) == "" {
		t.Error(err)
	}
	// Domain disk: any disk that holds no copy, another node's first.
	rule.Level = "disk"
	for i := range all {
		all[i].Domain = all[i].Name
	}
	if got, err := Target(rule, all[1].ID, []ids.ID{all[0].ID}, all); err != nil || got != all[2].ID {
		t.Errorf("the same node, another disk: %v, %v", got, err)
	}
}

// TestBalanceEnds: from any start the steps end, each is allowed, and afterwards
// no move is worth it: what was claimed late is used.
func TestBalanceEnds(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		nodes := rapid.IntRange(1, 4).Draw(t, "nodes")
		per := rapid.IntRange(1, 3).Draw(t, "disks")
		copies := rapid.IntRange(1, nodes).Draw(t, "copies")
		all := disks(nodes, per, 100*size.GiB)
		order, table, err := Segments(Rule{"p", copies, "node"}, id(7), rapid.IntRange(1, 60).Draw(t, "segments"), ids.ID{}, all)
		if err != nil {
			t.Fatal(err)
		}
		for i := range rapid.IntRange(0, 3).Draw(t, "new") {
			n := 1 + i%nodes
			d := disks(nodes, 9, 100*size.GiB)[(n-1)*9+5+i]
			all = append(all, d)
		}
		var rows []Row
		for k, r := range table {
			row := Row{Volume: id(7), Segment: k}
			for _, i := range r {
				row.Disks = append(row.Disks, order[i])
			}
			rows = append(rows, row)
		}
		promise := func() {
			for i := range all {
				all[i].Promised = 0
				for _, r := range rows {
					for _, d := range r.Disks {
						if d == all[i].ID {
							all[i].Promised += SegmentBytes
						}
					}
				}
			}
		}
		promise()
		steps := 0
		for s, ok := Balance(all, rows); ok; s, ok = Balance(all, rows) {
			if steps++; steps > 500 {
				t.Fatal("it never ends")
			}
			r := &rows[s.Segment]
			for i, d := range r.Disks {
				if d == s.Old {
					r.Disks[i] = s.New
				}
			}
			seen := map[string]bool{}
			for _, d := range r.Disks {
				for _, x := range all {
					if x.ID == d {
						if seen[x.Domain] {
							t.Fatalf("two copies in %s after %+v", x.Domain, s)
						}
						seen[x.Domain] = true
					}
				}
			}
			promise()
		}
	})
}

func TestBalanceFillsANewDisk(t *testing.T) {
	all := disks(3, 2, 8*size.GiB)
	for i := range all {
		all[i].Promised = 3 * size.GiB
	}
	fresh := all[0]
	fresh.ID, fresh.Name, fresh.Promised = id(999), "srv1/d3", 0
	all = append(all, fresh)
	rows := []Row{{Volume: id(7), Disks: []ids.ID{all[0].ID, all[2].ID, all[4].ID}, Keep: id(1)}}
	if s, ok := Balance(all, rows); !ok || s.New != fresh.ID || s.Old != all[0].ID {
		t.Errorf("%+v %v", s, ok)
	}
	rows[0].Busy = true
	if s, ok := Balance(all, rows); ok {
		t.Errorf("a busy volume is moved: %+v", s)
	}
}

func TestPoolCapacity(t *testing.T) {
	g := size.GiB
	for _, tt := range []struct {
		nodes, per      int
		data            size.Bytes
		copies          int
		reserve, usable size.Bytes
	}{
		{3, 4, 8 * g, 3, 24 * g, 24 * g},
		{3, 1, 8 * g, 3, 0, 8 * g},
		{2, 2, 8 * g, 3, 16 * g, 0},
		{4, 2, 8 * g, 2, 32 * g, 16 * g},
		{6, 2, 8 * g, 3, 32 * g, 16*g + 16*g/3},
		{1, 1, 8 * g, 1, 0, 8 * g},
	} {
		c := PoolCapacity(tt.copies, disks(tt.nodes, tt.per, tt.data))
		if c.Reserve != tt.reserve || c.Usable != tt.usable {
			t.Errorf("%+v: reserve %s usable %s", tt, c.Reserve, c.Usable)
		}
	}
}

// On one machine a disk is a domain: two disks and two copies keep no reserve,
// for nothing could be rebuilt; the third disk is what a lost one is rebuilt to.
func TestCapacityOfOneMachine(t *testing.T) {
	g := size.GiB
	for _, tt := range []struct {
		disks           int
		reserve, usable size.Bytes
	}{{2, 0, 8 * g}, {3, 8 * g, 8 * g}, {4, 8 * g, 12 * g}} {
		all := disks(1, tt.disks, 8*g)
		for i := range all {
			all[i].Domain = all[i].Name
			all[i].Used = 3 * g
		}
		c := PoolCapacity(2, all)
		if off := func(a, b size.Bytes) bool { return max(a-b, b-a) > size.MiB }; off(c.Reserve, tt.reserve) || off(c.Usable, tt.usable) {
			t.Errorf("%d disks: reserve %s usable %s", tt.disks, c.Reserve, c.Usable)
		}
		if limit := Limits(2, all)[all[0].ID]; c.Fullest != int(3*g*100/limit) {
			t.Errorf("%d disks: fullest %d %%, limit %s", tt.disks, c.Fullest, limit)
		}
	}
}

// What a lost disk held fits into the reserves of the others of its node, however
// unequal they are.
func TestLimitsLeaveRoomForRebuild(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		all := disks(rapid.IntRange(1, 4).Draw(t, "nodes"), rapid.IntRange(2, 4).Draw(t, "disks"), 0)
		for i := range all {
			all[i].Data = size.Bytes(rapid.IntRange(1, 64).Draw(t, "GiB")) * size.GiB
		}
		limits := Limits(3, all)
		for _, lost := range all {
			var free size.Bytes
			for _, d := range all {
				if d.Node == lost.Node && d.ID != lost.ID {
					free += d.Data - limits[d.ID]
				}
			}
			if free+size.MiB < limits[lost.ID] {
				t.Fatalf("%s may hold %s, the others keep %s", lost.Name, limits[lost.ID], free)
			}
		}
	})
}
