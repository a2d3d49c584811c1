package disk_test

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"roseau/internal/base/ids"
	"roseau/internal/block/disk"
	"roseau/internal/block/disk/disktest"
	"roseau/internal/block/wire"
	"roseau/internal/core/repl"
)

// step is a record in the oracle: what it does to blocks of one extent.
type step struct {
	kind   disk.Kind
	extent uint64
	block  int
	count  int
	wseq   uint64
	epoch  uint64
	object uint32
	acked  bool
	void   bool // refused for lack of space
}

// oracle is the dumb model of one volume: the list of its records in log order.
// A disk shows some prefix of it, at least what was flushed.
type oracle struct {
	vol     ids.ID
	steps   []step // steps[i].wseq rises
	flushed int    // steps that a completed flush covers
	mark    repl.Mark
	epoch   uint64 // promised and acked
	asked   uint64 // promised, perhaps not acked

	seq     uint32   // snapshot number that writes bear
	snaps   []uint32 // snapshots that exist
	cfg     uint32
	telling bool // a CONFIG is not answered
}

const oracleExtents = 12

// value is the content of a block in a short form: who wrote it; 0 = zeros.
type value struct{ epoch, wseq uint64 }

func (o *oracle) state(prefix int, extent uint64, block int) value {
	return o.stateAt(prefix, extent, block, 0)
}

// stateAt is what snapshot snap shows; 0 is the head.
func (o *oracle) stateAt(prefix int, extent uint64, block int, snap uint32) value {
	for i := prefix - 1; i >= 0; i-- {
		s := o.steps[i]
		if s.extent != extent || s.void || snap != 0 && s.object >= snap {
			continue
		}
		if s.kind == disk.KindTombstone {
			return value{}
		}
		if block >= s.block && block < s.block+s.count {
			if s.kind == disk.KindZero {
				return value{}
			}
			return value{s.epoch, s.wseq}
		}
	}
	return value{}
}

// fill writes the content of a block: sectors stamps each its sectors, so that a
// torn block is never taken for a whole one.
func fill(b []byte, v value, extent uint64, block, sectors int) {
	clear(b)
	for i := range sectors {
		at := i * disk.BlockBytes / sectors
		binary.LittleEndian.PutUint64(b[at:], v.wseq)
		binary.LittleEndian.PutUint64(b[at+8:], v.epoch)
		binary.LittleEndian.PutUint64(b[at+16:], extent<<16|uint64(block)<<4|uint64(i))
	}
}

func contentValue(b []byte) value {
	return value{binary.LittleEndian.Uint64(b[8:]), binary.LittleEndian.Uint64(b)}
}

// world is a disk, its core, and what the world saw of it.
type world struct {
	t       testing.TB
	r       *rand.Rand
	o       disk.Options
	disk    *disktest.Disk
	v       *disktest.Driver
	vols    []*oracle
	pending map[uint64]func(disk.Completion)
	token   uint64
	sectors int
	fail    string
}

func (w *world) failf(format string, args ...any) {
	if w.fail == "" {
		w.fail = fmt.Sprintf(format, args...)
	}
}

func newWorld(t testing.TB, r *rand.Rand, o disk.Options) *world {
	d, err := disktest.Format(identity, disk.Geometry{DeviceBytes: 16 << 20, WALBytes: 512 << 10, VolumeTableBytes: 64 << 10, ExtentBlocks: extentBlocks})
	if err != nil {
		t.Fatal(err)
	}
	w := &world{t: t, r: r, o: o, disk: d, sectors: 8}
	w.vols = []*oracle{{vol: vol1}, {vol: vol2}}
	w.start(true)
	return w
}

// start opens the disk, sometimes crashing inside recovery, and checks it.
func (w *world) start(power bool) {
	for {
		w.pending = map[uint64]func(disk.Completion){}
		w.v = disktest.Start(w.disk, w.o, w.r)
		w.v.Finish = func(c disk.Completion) {
			fn := w.pending[c.Token]
			delete(w.pending, c.Token)
			if fn == nil {
				w.failf("token %d answered twice", c.Token)
				return
			}
			fn(c)
		}
		crashAt := -1
		if w.r != nil && w.r.IntN(4) == 0 {
			crashAt = w.r.IntN(20)
		}
		for n := 0; ; n++ {
			_, ended, err := w.v.Core.Opened()
			if err != nil {
				w.failf("open: %v", err)
				return
			}
			if ended {
				w.check()
				return
			}
			if n == crashAt {
				if power {
					w.disk.CrashRandom(w.r)
				} else {
					w.disk.Kill(w.r)
				}
				break
			}
			if !w.v.Step() {
				w.failf("recovery hangs")
				return
			}
		}
	}
}

func (w *world) call(fn func(disk.Completion), f func(token uint64)) {
	w.token++
	w.pending[w.token] = fn
	f(w.token)
	w.v.Pump()
}

// check compares everything that the disk shows with the oracle.
func (w *world) check() {
	for _, o := range w.vols {
		info, known := w.v.Core.Volume(o.vol)
		if !known && o.epoch > 0 {
			w.failf("volume forgotten")
			return
		}
		if !known {
			if o.flushed > 0 {
				w.failf("volume forgotten")
			}
			o.asked, o.steps = 0, nil
			continue
		}
		if info.Promise.Epoch < o.epoch || info.Promise.Epoch > o.asked {
			w.failf("promise %d, acked %d, asked %d", info.Promise.Epoch, o.epoch, o.asked)
			return
		}
		if info.Damaged {
			rep, _, _ := w.v.Core.Opened()
			w.failf("damaged: %+v", rep)
			return
		}
		o.epoch, o.asked, o.telling = info.Promise.Epoch, info.Promise.Epoch, false
		k := w.prefix(o, info.MaxMark)
		if k < o.flushed {
			rep, _, _ := w.v.Core.Opened()
			w.failf("prefix %d of %d, %d were flushed; %+v %+v %+v", k, len(o.steps), o.flushed, info, rep, o.steps[max(0, k-3):o.flushed+1])
			return
		}
		for _, snap := range append([]uint32{0}, o.snaps...) {
			w.checkBlocks(o, k, snap)
		}
		w.checkWindow(o, info, k)
		o.steps = o.steps[:k]
	}
}

// prefix returns how many steps the disk has, by its newest mark; trailing ones
// that changed nothing may be missing.
func (w *world) prefix(o *oracle, m repl.Mark) int {
	k := 0
	for k < len(o.steps) && (o.steps[k].void || !m.Less(repl.Mark{Epoch: o.steps[k].epoch, Wseq: o.steps[k].wseq})) {
		k++
	}
	for k < o.flushed && (o.steps[k].kind != disk.KindWrite || o.steps[k].void) {
		k++
	}
	return k
}

func (w *world) checkBlocks(o *oracle, k int, snap uint32) {
	for e := range uint64(oracleExtents) {
		w.call(func(c disk.Completion) {
			if c.Status != wire.OK {
				w.failf("read extent %d: status %d, bad %v", e, c.Status, c.Bad)
				return
			}
			for b := range extentBlocks {
				want := o.stateAt(k, e, b, snap)
				var got value
				if c.Data != nil {
					got = contentValue(c.Data[b*disk.BlockBytes:])
				}
				if got != want {
					if w.fail == "" && testing.Verbose() {
						for i, s := range o.steps {
							if s.extent == e {
								fmt.Printf("%d: %+v\n", i, s)
							}
						}
						rep, _, _ := w.v.Core.Opened()
						fmt.Printf("%+v\n%+v\n", rep, w.v.Core.Stats())
					}
					w.failf("volume %s snapshot %d of %v block %d/%d: got %v, want %v (prefix %d of %d, flushed %d)", o.vol.Short(), snap, o.snaps, e, b, got, want, k, len(o.steps), o.flushed)
				}
			}
		}, func(tok uint64) {
			w.v.Core.Read(tok, disk.ReadRequest{Volume: o.vol, Extent: e, Object: snap, Count: extentBlocks, Buf: make([]byte, extentBlocks*disk.BlockBytes)})
		})
	}
	n := len(w.pending)
	for len(w.pending) > 0 && w.v.Step() {
	}
	if len(w.pending) > 0 && o.epoch > 0 {
		w.failf("%d of %d reads hang", len(w.pending), n)
	}
}

func (w *world) checkWindow(o *oracle, info disk.VolumeInfo, k int) {
	have := map[repl.Mark]bool{}
	for _, e := range w.v.Core.Window(o.vol, repl.Mark{}) {
		if e.Verified {
			have[e.Mark] = true
		}
	}
	if o.mark.Less(info.FlushMark) {
		w.failf("flush mark %v, told only %v", info.FlushMark, o.mark)
	}
	for _, s := range o.steps[:k] {
		m := repl.Mark{Epoch: s.epoch, Wseq: s.wseq}
		if o.mark.Less(m) && !have[m] && !s.void {
			w.failf("window lacks %v above %v (kind %d)", m, o.mark, s.kind)
			return
		}
	}
}

// act does one random thing.
func (w *world) act() {
	o := w.vols[w.r.IntN(len(w.vols))]
	switch x := w.r.IntN(100); {
	case o.asked == 0 || x < 2:
		w.promise(o)
	case x < 45:
		w.change(o, disk.KindWrite)
	case x < 50:
		w.change(o, disk.KindZero)
	case x < 55:
		w.change(o, disk.KindTombstone)
	case x < 63:
		w.flush(o)
	case x < 70:
		w.read(o)
	case x < 72:
		w.v.Core.Idle()
		w.v.Pump()
	case x < 74:
		w.snapshot(o)
	case x < 80:
		w.v.Core.Merge()
		w.v.Pump()
	default:
		w.v.Step()
	}
}

func (w *world) promise(o *oracle) {
	o.asked++
	epoch := o.asked
	w.call(func(c disk.Completion) {
		if c.Status != wire.OK {
			w.failf("promise: %d", c.Status)
		}
		o.epoch = max(o.epoch, epoch)
	}, func(tok uint64) {
		w.v.Core.Control(tok, disk.Control{Kind: disk.ControlPromise, Volume: o.vol, Promise: promise(epoch), Boot: boot})
	})
}

func (w *world) change(o *oracle, kind disk.Kind) {
	s := step{kind: kind, extent: w.r.Uint64N(oracleExtents), epoch: o.asked, wseq: 1, object: o.seq}
	if n := len(o.steps); n > 0 {
		s.wseq = o.steps[n-1].wseq + 1 + w.r.Uint64N(2)
	}
	s.block = w.r.IntN(extentBlocks)
	s.count = 1 + w.r.IntN(min(4, extentBlocks-s.block))
	w.apply(o, s, w.r.IntN(8) == 0)
}

func (w *world) apply(o *oracle, s step, durable bool) {
	rec := disk.Record{
		Kind: s.kind, Volume: o.vol, Writer: disk.Writer{Epoch: s.epoch}, Extent: s.extent, Durable: durable,
		Mark: repl.Mark{Epoch: s.epoch, Wseq: s.wseq}, Block: s.block, Count: s.count, Object: s.object,
	}
	if s.kind == disk.KindWrite {
		rec.Data = w.v.Pool.Alloc(s.count * disk.BlockBytes)
		for i := range s.count {
			fill(rec.Data[i*disk.BlockBytes:(i+1)*disk.BlockBytes], value{s.epoch, s.wseq}, s.extent, s.block+i, w.sectors)
		}
		rec.CRC = crcs(rec.Data)
	}
	o.steps = append(o.steps, s)
	n := len(o.steps)
	w.call(func(c disk.Completion) {
		if c.Status == wire.NoSpace || c.Status == wire.StaleEpoch && s.epoch < o.asked { // the latter: held for the feature bit
			o.steps[n-1].void, o.steps[n-1].acked = true, true
			return
		}
		if c.Status != wire.OK {
			w.failf("append kind %d: status %d", s.kind, c.Status)
			return
		}
		for i := range o.steps[:n] { // acks come in log order
			o.steps[i].acked = true
		}
		if durable {
			o.flushed = max(o.flushed, n)
		}
	}, func(tok uint64) { w.v.Core.Append(tok, rec) })
}

// snapshot takes one, deletes one, or tells again which there are. Nothing bears
// a new number before the disk knows it.
func (w *world) snapshot(o *oracle) {
	if o.telling || o.epoch != o.asked {
		return
	}
	snaps, seq := append([]uint32(nil), o.snaps...), o.seq
	switch {
	case w.r.IntN(3) == 0 && len(o.snaps) > 0:
		i := w.r.IntN(len(o.snaps))
		snaps = append(snaps[:i], snaps[i+1:]...)
	case w.r.IntN(2) == 0 && len(o.snaps) < 3:
		seq++
		snaps = append(snaps, seq)
	}
	w.tell(o, seq, snaps)
}

// tell issues a CONFIG; writes bear seq once it is answered.
func (w *world) tell(o *oracle, seq uint32, snaps []uint32) {
	if len(snaps) < len(o.snaps) {
		o.snaps = snaps
	}
	o.cfg++
	o.telling = true
	w.call(func(c disk.Completion) {
		o.telling = false
		if c.Status != wire.OK {
			w.failf("config: %d", c.Status)
		}
		// Every write of the old number is in the log already: the boundary.
		o.seq, o.snaps = seq, snaps
	}, func(tok uint64) {
		w.v.Core.Control(tok, disk.Control{Kind: disk.ControlConfig, Volume: o.vol, Told: wire.Told{
			Epoch: o.epoch, CfgVersion: o.cfg, Whole: true, SnapSeq: seq, Snaps: snaps,
		}})
	})
}

func (w *world) flush(o *oracle) {
	n := 0
	for n < len(o.steps) && o.steps[n].acked {
		n++
	}
	if n == 0 {
		return
	}
	upto := repl.Mark{Epoch: o.steps[n-1].epoch, Wseq: o.steps[n-1].wseq}
	w.call(func(c disk.Completion) {
		if c.Status != wire.OK {
			w.failf("flush: %d", c.Status)
			return
		}
		o.flushed = max(o.flushed, n)
		if w.r != nil && w.r.IntN(2) == 0 { // as if all members had flushed
			if o.mark.Less(upto) {
				o.mark = upto
			}
			w.v.Core.SetFlushMark(o.vol, upto)
		}
	}, func(tok uint64) { w.v.Core.Flush(tok, o.vol, upto) })
}

// read checks a read that runs beside writes: it may see any version between
// the newest acked one at its start and the newest one at its end.
func (w *world) read(o *oracle) {
	e, b := w.r.Uint64N(oracleExtents), w.r.IntN(extentBlocks)
	n := 1 + w.r.IntN(extentBlocks-b)
	low := 0
	for low < len(o.steps) && o.steps[low].acked {
		low++
	}
	w.call(func(c disk.Completion) {
		if c.Status != wire.OK {
			w.failf("read %d/%d+%d: status %d, bad %v", e, b, n, c.Status, c.Bad)
			return
		}
		for i := range n {
			var got value
			if c.Data != nil {
				got = contentValue(c.Data[i*disk.BlockBytes:])
			}
			ok := false
			for k := low; k <= len(o.steps) && !ok; k++ {
				ok = got == o.state(k, e, b+i)
			}
			if !ok {
				w.failf("read %d/%d: got %v, want %v or newer", e, b+i, got, o.state(low, e, b+i))
			}
		}
	}, func(tok uint64) {
		w.v.Core.Read(tok, disk.ReadRequest{Volume: o.vol, Extent: e, Block: b, Count: n, Buf: make([]byte, n*disk.BlockBytes)})
	})
}

// crash ends the run: by a power cut, or by the death of the process.
func (w *world) crash(power bool) {
	if power {
		w.disk.CrashRandom(w.r)
	} else {
		w.disk.Kill(w.r)
		for _, o := range w.vols { // nothing acked may be lost
			for i := range o.steps {
				if o.steps[i].acked && !o.steps[i].void {
					o.flushed = max(o.flushed, i+1)
				}
			}
		}
	}
	w.start(power)
}

func randomOptions(r *rand.Rand) disk.Options {
	return disk.Options{
		TagCacheBytes: []int{1, 32 << 10, 1 << 20}[r.IntN(3)], DataCacheBytes: []int{1, 64 << 10, 4 << 20}[r.IntN(3)],
		LogQueueDepth: 1 + r.IntN(3), FreshBlocks: 1 + r.IntN(3), ApplyDepth: 1 + r.IntN(4), CheckpointFraction: []int{2, 4, 16}[r.IntN(3)],
	}
}

// runHistory runs random histories of one seed with crashes; "" = no fault found.
func runHistory(t testing.TB, seed uint64, rounds, actions int, mutate func(*disk.Options)) (fail string) {
	r := rand.New(rand.NewPCG(seed, 1))
	o := randomOptions(r)
	if mutate != nil {
		mutate(&o)
	}
	defer func() {
		if p := recover(); p != nil {
			fail = fmt.Sprint("panic: ", p)
			if mutate == nil {
				panic(p)
			}
		}
	}()
	w := newWorld(t, r, o)
	for range rounds {
		for range r.IntN(actions) {
			if w.act(); w.fail != "" {
				return w.fail
			}
		}
		if r.IntN(8) == 0 {
			w.v.Settle()
			w.v.Quiesce()
			if n := len(w.pending); n > 0 && w.fail == "" {
				w.failf("%d requests were never answered", n)
			}
			w.fsck()
		}
		if w.crash(r.IntN(4) != 0); w.fail != "" {
			return w.fail
		}
	}
	return ""
}

// fsck: what is settled is sound; superblock copies may wait for the next write.
func (w *world) fsck() {
	rep, err := disk.Fsck(w.disk, w.disk.Size)
	if err != nil {
		w.failf("fsck: %v", err)
		return
	}
	for _, p := range rep.Problems {
		if !strings.HasPrefix(p, "superblock") {
			w.failf("fsck: %s", p)
		}
	}
}

func TestRandomCrashes(t *testing.T) {
	n := uint64(60)
	if testing.Short() {
		n = 20
	}
	for seed := range n {
		if fail := runHistory(t, seed, 12, 200, nil); fail != "" {
			t.Fatalf("seed %d: %s", seed, fail)
		}
	}
}
