package storage

import (
	"bytes"
	"os"
	"slices"
	"testing"
	"time"

	"roseau/internal/base/ids"
	"roseau/internal/block/wire"
	"roseau/internal/core/repl"
	"roseau/internal/driver/storagectl"
)

func (r *rig) care(disk ids.ID) storagectl.Care {
	r.t.Helper()
	list, err := r.ctl.Care(r.ctx())
	r.must(err)
	i := slices.IndexFunc(list, func(c storagectl.Care) bool { return c.Disk == disk })
	if i < 0 {
		r.t.Fatalf("no care of disk %s: %+v", disk, list)
	}
	return list[i]
}

// scrubbed runs a pass to its end.
func (r *rig) scrubbed(disk ids.ID) storagectl.Care {
	r.t.Helper()
	before := r.care(disk).Scrub.Ended
	r.must(r.ctl.Scrub(r.ctx(), storagectl.ScrubRequest{Disk: disk, DutyPercent: 100}))
	for range 1000 {
		if c := r.care(disk); !c.Scrub.Running && c.Scrub.Ended.After(before) {
			return c
		}
		time.Sleep(5 * time.Millisecond)
	}
	r.t.Fatalf("the pass does not end: %+v", r.care(disk))
	return storagectl.Care{}
}

// flip changes a bit wherever the file holds the block.
func (r *rig) flip(file string, block []byte) {
	r.t.Helper()
	b, err := os.ReadFile(file)
	r.must(err)
	n := 0
	for at := 0; ; n++ {
		i := bytes.Index(b[at:], block)
		if i < 0 {
			break
		}
		at += i
		f, err := os.OpenFile(file, os.O_RDWR, 0)
		r.must(err)
		_, err = f.WriteAt([]byte{block[7] ^ 4}, int64(at+7))
		r.must(err)
		r.must(f.Close())
		at += len(block)
	}
	if n == 0 {
		r.t.Fatal("the block is not on the disk")
	}
}

func TestScrubFindsRotAndTheWriterHealsIt(t *testing.T) {
	r := newRig(t)
	r.start()
	d := r.claim("d1")
	g := r.connect(0)
	h := g.open(d.ID, 1).Handle
	data := content(4, 1)
	g.write(h, 1, 1, 10, data)
	ask[*wire.FlushAck](g, &wire.Flush{ReqID: g.id(), Handle: h, Upto: 1})
	if c := r.scrubbed(d.ID); c.Scrub.Extents != 1 || c.Scrub.Bytes != int64(len(data)) || c.Scrub.BadBlocks+c.BadBlocks != 0 {
		t.Fatalf("clean pass: %+v", c)
	}
	bad := data[2*repl.BlockBytes : 3*repl.BlockBytes]
	r.flip(d.Path, bad)
	c := r.scrubbed(d.ID)
	if c.Scrub.BadBlocks != 1 || c.BadBlocks != 1 || len(c.Damage) != 1 || c.Damage[0].Blocks != 1 || c.RetirePropose {
		t.Fatalf("%+v", c)
	}
	m, ok := g.next().(*wire.Damage)
	if !ok || m.Handle != h || len(m.Blocks) != 1 || m.Blocks[0].Block != 12 {
		t.Fatalf("the writer was told %+v", m)
	}
	ack := ask[*wire.Ack](g, &wire.Repair{ReqID: g.id(), Handle: h, Block: 12, Expect: m.Blocks[0].Tag, Tag: m.Blocks[0].Tag, Mark: repl.Mark{Epoch: 1, Wseq: 1}, Data: bad})
	if ack.Status != wire.OK {
		t.Fatalf("repair: status %d", ack.Status)
	}
	if c := r.care(d.ID); len(c.Damage) != 0 || c.Repaired != 1 {
		t.Errorf("after the repair: %+v", c)
	}
	g.read(h, 10, data)
	// The counts outlive the process once they are saved.
	for range 400 {
		if b, _ := os.ReadFile(r.path("care.json")); bytes.Contains(b, []byte(`"repaired": 1`)) {
			break
		}
		time.Sleep(50 * time.Millisecond)
	}
	r.kill()
	r.start()
	if c := r.care(d.ID); c.BadBlocks != 1 || c.Repaired != 1 || c.Scrub.Ended.IsZero() || c.Scrub.Extents != 1 {
		t.Errorf("after a restart: %+v", c)
	}
}

func TestLatencies(t *testing.T) {
	var l latencies
	for _, d := range []time.Duration{time.Nanosecond, 17 * time.Microsecond, 3 * time.Millisecond, 5 * time.Second, 300 * time.Hour} {
		if got := timeOf(bucketOf(d)); d < 200*time.Hour && (got < d*85/100 || got > d*115/100+1) {
			t.Errorf("%v is counted as %v", d, got)
		}
	}
	for i := range 100 {
		l.add(time.Duration(100+i) * time.Microsecond)
	}
	l.add(time.Second)
	if _, n := l.median(); n != 0 {
		t.Errorf("a window that fills is read: %d", n)
	}
	l.swap()
	if m, n := l.median(); n != 101 || m < 130*time.Microsecond || m > 170*time.Microsecond {
		t.Errorf("median %v of %d", m, n)
	}
	l.swap()
	if _, n := l.median(); n != 0 {
		t.Errorf("the window before is not forgotten: %d", n)
	}
}

// What cannot be read is dropped: a storage process that does not start is worse.
func TestBrokenCareFileCostsCountsOnly(t *testing.T) {
	r := newRig(t)
	r.must(os.WriteFile(r.path("care.json"), []byte(`{"disks":{"x`), 0o600))
	r.start()
	d := r.claim("d1")
	if c := r.care(d.ID); c.BadBlocks != 0 {
		t.Errorf("%+v", c)
	}
}
