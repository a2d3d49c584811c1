package disk_test

import (
	"testing"

	"roseau/internal/block/disk"
	"roseau/internal/block/disk/disktest"
	"roseau/internal/block/wire"
	"roseau/internal/core/repl"
)

// Each mutant must be seen by the histories that find nothing in the correct
// engine; else the histories are blind there.
func TestMutantsAreCaught(t *testing.T) {
	for _, m := range []struct {
		name string
		set  func(*disk.Mutations)
	}{
		{"SkipFlushSync", func(m *disk.Mutations) { m.SkipFlushSync = true }},
		{"ApplyBeforeDurable", func(m *disk.Mutations) { m.ApplyBeforeDurable = true }},
		{"AckPromiseNotDurable", func(m *disk.Mutations) { m.AckPromiseNotDurable = true }},
		{"TailIgnoresFlushMark", func(m *disk.Mutations) { m.TailIgnoresFlushMark = true }},
		{"ZeroAboveIsAbsent", func(m *disk.Mutations) { m.ZeroAboveIsAbsent = true }},
		{"FreeBeforeCopy", func(m *disk.Mutations) { m.FreeBeforeCopy = true }},
		{"MergeIgnoresTold", func(m *disk.Mutations) { m.MergeIgnoresTold = true }},
		{"FreshUnverified", func(m *disk.Mutations) { m.FreshUnverified = true }},
		{"FreshOverPresent", func(m *disk.Mutations) { m.FreshOverPresent = true }},
	} {
		t.Run(m.name, func(t *testing.T) {
			for seed := range uint64(200) {
				fail := runHistory(t, seed, 12, 200, func(o *disk.Options) { m.set(&o.Mutations) })
				if fail != "" {
					t.Logf("seed %d: %.200s", seed, fail)
					return
				}
			}
			t.Fatal("not caught")
		})
	}
}

// damagedLog makes a log whose first batches are durable and provably so, and
// breaks one of them.
func damagedLog(t *testing.T, payload bool) *disktest.Disk {
	d := format(t)
	f := open(t, d, disk.Options{})
	f.promise(vol1, 1)
	f.write(vol1, 1, 1, 0, 0, pattern(1, 1))
	f.write(vol1, 1, 2, 1, 0, pattern(1, 2))
	at := f.Core.Stats().HeadLSN
	f.write(vol1, 1, 3, 2, 0, pattern(1, 3))
	f.flush(vol1, 1, 3)
	f.write(vol1, 1, 4, 3, 0, pattern(1, 4)) // its batch says that the others are durable
	off := walOffset(t, d) + int64(at)
	if payload {
		off += disk.BlockBytes
	}
	d.Flip(off+100, 3)
	return d
}

func walOffset(t *testing.T, d *disktest.Disk) int64 {
	t.Helper()
	rep, err := disk.Fsck(d, d.Size)
	if err != nil {
		t.Fatal(err)
	}
	return rep.Superblock.WALOffset
}

func TestDurableLogIsNeverTruncated(t *testing.T) {
	d := damagedLog(t, false)
	v, rep, err := disktest.Open(d.Clone(), disk.Options{}, nil)
	if err != nil || len(rep.DamagedRanges) != 1 {
		t.Fatalf("%+v, %v", rep, err)
	}
	f := &fixture{Driver: v, t: t}
	info, _ := f.Core.Volume(vol1)
	if !info.Damaged || info.MaxMark.Wseq != 4 {
		t.Fatalf("%+v", info)
	}
	f.want(vol1, 0, 0, pattern(1, 1))
	f.want(vol1, 3, 0, pattern(1, 4))
	f = open(t, d2(f), disk.Options{}) // the mark stays
	if info, _ := f.Core.Volume(vol1); !info.Damaged {
		t.Fatalf("%+v", info)
	}
	f.promise(vol1, 2)
	tok := f.next()
	f.Core.Control(tok, disk.Control{Kind: disk.ControlSyncDone, Volume: vol1})
	f.wait(tok)
	if info, _ := f.Core.Volume(vol1); info.Damaged {
		t.Fatal("still damaged after a sync")
	}

	v, rep, err = disktest.Open(d, disk.Options{Mutations: disk.Mutations{TruncateDamagedLog: true}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if info, _ := v.Core.Volume(vol1); info.Damaged || info.MaxMark.Wseq != 2 {
		t.Fatalf("the mutant is not what it says: %+v %+v", info, rep)
	}
}

func d2(f *fixture) *disktest.Disk { return f.Disk }

func TestDamagedPayloadIsUnreadable(t *testing.T) {
	f := open(t, damagedLog(t, true), disk.Options{})
	check := func() {
		t.Helper()
		if c := f.read(vol1, 2, 0, 1); c.Status != wire.Unreadable || len(c.Bad) != 1 {
			t.Fatalf("%+v", c)
		}
		f.want(vol1, 1, 0, pattern(1, 2))
		f.want(vol1, 3, 0, pattern(1, 4))
	}
	check()
	f.Quiesce()
	check() // the tag is stored, the data is not blessed
	f = open(t, f.Disk, disk.Options{})
	check()
	// A repair with the right tag mends it.
	f.promise(vol1, 1)
	good := pattern(1, 3)
	tag := wire.Tag{CRC: crcs(good)[0], Stamp: 3}
	r := f.record(disk.KindRepair, vol1, 1, 3, 2, 0, 1, good)
	r.CRC, r.Count, r.Tag, r.Expect = nil, 0, tag, wire.Tag{CRC: 1, Stamp: 1}
	if s := f.append(r); s != wire.TagChanged {
		t.Fatal(s)
	}
	r = f.record(disk.KindRepair, vol1, 1, 3, 2, 0, 1, good)
	r.CRC, r.Count, r.Tag, r.Expect = nil, 0, tag, tag
	if s := f.append(r); s != wire.OK {
		t.Fatal(s)
	}
	f.want(vol1, 2, 0, good)
}

func TestTornTailIsListed(t *testing.T) {
	d := format(t)
	f := open(t, d, disk.Options{})
	f.promise(vol1, 1)
	f.write(vol1, 1, 1, 0, 0, pattern(1, 1))
	f.flush(vol1, 1, 1)
	f.write(vol1, 1, 2, 1, 5, pattern(2, 2))
	// The header survives, the payload does not.
	list := d.Volatile()
	first := list[0].Offset
	d.Crash(list, func(i int) bool { return list[i].Offset < first+disk.BlockBytes })
	v, rep, err := disktest.Open(d, disk.Options{}, nil)
	if err != nil || rep.Unverified != 1 || len(rep.DamagedRanges) != 0 {
		t.Fatalf("%+v %v", rep, err)
	}
	for range 2 {
		f = &fixture{Driver: v, t: t}
		w := f.Core.Window(vol1, repl.Mark{Epoch: 1, Wseq: 1})
		info, _ := f.Core.Volume(vol1)
		if len(w) != 1 || w[0].Verified || w[0].Extent != 1 || w[0].Block != 5 || w[0].Count != 2 || info.Unverified != 1 {
			t.Fatalf("%+v %+v", w, info)
		}
		f.want(vol1, 1, 5, make([]byte, 2*disk.BlockBytes))
		f.Quiesce()
		if v, _, err = disktest.Open(d, disk.Options{}, nil); err != nil { // still listed
			t.Fatal(err)
		}
	}
}

// A record that was dropped from the end of the log is listed below the mark that
// a writer asks from, too: if every copy had flushed it, it was no torn tail. A
// writer that took it again, or compared the copy, ends that.
func TestLostTailIsListedBelowTheMark(t *testing.T) {
	lose := func() *disktest.Disk {
		d := format(t)
		f := open(t, d, disk.Options{})
		f.promise(vol1, 1)
		f.write(vol1, 1, 1, 0, 0, pattern(1, 1))
		f.flush(vol1, 1, 1)
		f.write(vol1, 1, 2, 1, 5, pattern(2, 1))
		list := d.Volatile()
		first := list[0].Offset
		d.Crash(list, func(i int) bool { return list[i].Offset < first+disk.BlockBytes })
		return d
	}
	above := repl.Mark{Epoch: 1, Wseq: 9}
	for _, c := range []struct {
		name string
		do   func(f *fixture)
		want int
	}{
		{"nothing", func(*fixture) {}, 1},
		{"the flush mark moves past it", func(f *fixture) { f.Core.SetFlushMark(vol1, above) }, 1},
		{"it is taken again", func(f *fixture) { f.write(vol1, 1, 2, 1, 5, pattern(2, 1)) }, 0},
		{"the copy is compared", func(f *fixture) { f.Core.Control(f.next(), disk.Control{Kind: disk.ControlSyncDone, Volume: vol1}) }, 0},
		{"a takeover ends", func(f *fixture) {
			f.Core.Control(f.next(), disk.Control{Kind: disk.ControlConfig, Volume: vol1, Told: wire.Told{Epoch: 1, CfgVersion: 1, Complete: true}})
		}, 0},
	} {
		v, _, err := disktest.Open(lose(), disk.Options{}, nil)
		if err != nil {
			t.Fatal(err)
		}
		f := &fixture{Driver: v, t: t}
		c.do(f)
		f.Quiesce()
		n := 0
		for _, e := range f.Core.Window(vol1, above) {
			if e.Verified || e.Extent != 1 || e.Block != 5 {
				t.Errorf("%s: %+v is listed", c.name, e)
			}
			n++
		}
		if n != c.want {
			t.Errorf("%s: %d listed, want %d", c.name, n, c.want)
		}
	}
}

func TestEpochIsCheckedAtAppend(t *testing.T) {
	run := func(o disk.Options) wire.Status {
		f := open(t, format(t), o)
		f.promise(vol1, 5)
		f.write(vol1, 5, 1, 0, 0, pattern(1, 1))
		tok := f.next()
		f.Core.Control(tok, disk.Control{Kind: disk.ControlPromise, Volume: vol1, Promise: promise(6)})
		return f.write(vol1, 5, 2, 0, 0, pattern(1, 2)) // it waited in a queue
	}
	if s := run(disk.Options{}); s != wire.StaleEpoch {
		t.Fatal(s)
	}
	if s := run(disk.Options{Mutations: disk.Mutations{EpochUnchecked: true}}); s != wire.OK {
		t.Fatal(s)
	}
	f := open(t, format(t), disk.Options{})
	f.promise(vol1, 5)
	tok := f.next()
	f.Core.Control(tok, disk.Control{Kind: disk.ControlRelease, Volume: vol1})
	if s := f.write(vol1, 5, 1, 0, 0, pattern(1, 1)); s != wire.Released {
		t.Fatal(s)
	}
}
