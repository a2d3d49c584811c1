package replica

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/datadriven"

	"roseau/internal/base/clock"
	"roseau/internal/base/ids"
	"roseau/internal/block/disk"
	"roseau/internal/block/wire"
	"roseau/internal/core/repl"
)

// id makes a readable identity of a name.
func id(name string) (i ids.ID) {
	copy(i[:], name)
	return i
}

func name(i ids.ID) string {
	if i.IsZero() {
		return "-"
	}
	return strings.TrimRight(string(i[:]), "\x00")
}

// fakeDisk is a disk that logs in memory. While held it completes nothing.
type fakeDisk struct {
	id      ids.ID
	held    bool
	died    error
	vols    map[ids.ID]*disk.VolumeInfo
	records map[ids.ID][]disk.Record
	done    []disk.Completion
	waiting []disk.Completion
	log     []string // what was asked
}

func newFake(n string) *fakeDisk {
	return &fakeDisk{id: id(n), vols: map[ids.ID]*disk.VolumeInfo{}, records: map[ids.ID][]disk.Record{}}
}

func (f *fakeDisk) Identity() disk.Identity { return disk.Identity{Disk: f.id} }
func (f *fakeDisk) ExtentBlocks() int       { return 8 }
func (f *fakeDisk) Ready(r *disk.Ready) {
	r.IO, r.Done = nil, f.done
	f.done = nil
}
func (f *fakeDisk) Done(uint64, error) {}
func (f *fakeDisk) finish(d disk.Completion) {
	if f.held {
		f.waiting = append(f.waiting, d)
		return
	}
	f.done = append(f.done, d)
}

func (f *fakeDisk) Append(token uint64, r disk.Record) {
	info := f.vols[r.Volume]
	st := wire.OK
	if info == nil || info.Promise.Epoch != r.Writer.Epoch || info.Promise.Inc != r.Writer.Inc {
		st = wire.StaleEpoch
	} else {
		f.records[r.Volume] = append(f.records[r.Volume], r)
		info.MaxMark = r.Mark
		var blocks []string
		for _, b := range r.Blocks {
			blocks = append(blocks, strconv.Itoa(int(b.Block)))
		}
		f.log = append(f.log, fmt.Sprintf("append kind=%d extent=%d block=%d+%d %d/%d data=%d sync=[%s]",
			r.Kind, r.Extent, r.Block, r.Count, r.Mark.Epoch, r.Mark.Wseq, len(r.Data), strings.Join(blocks, " ")))
	}
	f.finish(disk.Completion{Token: token, Status: st})
}

func (f *fakeDisk) Control(token uint64, c disk.Control) {
	info := f.vols[c.Volume]
	if info == nil {
		info = &disk.VolumeInfo{Volume: c.Volume}
		f.vols[c.Volume] = info
	}
	if !c.Boot.IsZero() {
		info.Boot = c.Boot
	}
	switch c.Kind {
	case disk.ControlPromise:
		info.Promise, info.Released = c.Promise, false
	case disk.ControlRelease:
		info.Released = true
	case disk.ControlConfig:
		info.Told = c.Told
	case disk.ControlDrop:
		delete(f.vols, c.Volume)
	}
	f.log = append(f.log, fmt.Sprintf("control kind=%d boot=%s", c.Kind, name(c.Boot)))
	f.finish(disk.Completion{Token: token})
}

func (f *fakeDisk) Flush(token uint64, v ids.ID, upto repl.Mark) {
	if info := f.vols[v]; info != nil {
		info.DurableMark = upto
	}
	f.finish(disk.Completion{Token: token})
}

func (f *fakeDisk) Read(token uint64, r disk.ReadRequest) {
	f.finish(disk.Completion{Token: token, Tags: make([]wire.Tag, r.Count)})
}

func (f *fakeDisk) Places(token uint64, v ids.ID, extent uint64) {
	f.finish(disk.Completion{Token: token, Status: wire.Busy})
}

func (f *fakeDisk) Tags(token uint64, v ids.ID, extent uint64, object uint32) {
	f.finish(disk.Completion{Token: token})
}
func (f *fakeDisk) CheckMeta(token uint64) { f.finish(disk.Completion{Token: token}) }
func (f *fakeDisk) CheckImages(token uint64, v ids.ID, extent uint64, object uint32) {
	f.finish(disk.Completion{Token: token})
}
func (f *fakeDisk) Checkpoint()       {}
func (f *fakeDisk) Volumes() []ids.ID { return nil }

func (f *fakeDisk) Probe(token uint64) { f.finish(disk.Completion{Token: token}) }
func (f *fakeDisk) Idle()              {}
func (f *fakeDisk) Volume(v ids.ID) (disk.VolumeInfo, bool) {
	if info := f.vols[v]; info != nil {
		return *info, true
	}
	return disk.VolumeInfo{}, false
}

func (f *fakeDisk) Window(v ids.ID, from repl.Mark) (es []wire.WindowEntry) {
	for _, r := range f.records[v] {
		if from.Less(r.Mark) {
			es = append(es, wire.WindowEntry{Kind: wire.RecordWrite, Mark: r.Mark, Block: uint16(r.Block), Count: uint16(r.Count), CRC: r.CRC})
		}
	}
	return es
}

func (f *fakeDisk) Objects(v ids.ID, from repl.Mark) (es []wire.ExtEntry) {
	for range f.records[v] {
		es = append(es, wire.ExtEntry{})
	}
	return es
}
func (f *fakeDisk) ObjectsOf(ids.ID, uint64) []uint32 { return nil }
func (f *fakeDisk) SetFlushMark(v ids.ID, m repl.Mark) {
	f.log = append(f.log, fmt.Sprintf("flush mark %d/%d", m.Epoch, m.Wseq))
}
func (f *fakeDisk) ForgetTombstones(v ids.ID, m repl.Mark) {
	f.log = append(f.log, "forget tombstones")
}
func (f *fakeDisk) ReadTags(token uint64, v ids.ID, extent uint64, snap uint32) {
	f.Tags(token, v, extent, 0)
}
func (f *fakeDisk) ForbidMerge(v ids.ID) { f.log = append(f.log, "forbid-merge "+name(v)) }
func (f *fakeDisk) Merge() bool          { return false }
func (f *fakeDisk) Stats() disk.Stats    { return disk.Stats{} }
func (f *fakeDisk) Dead() error          { return f.died }

// countingPool finds leaks.
type countingPool struct{ out int }

func (p *countingPool) Alloc(n int) []byte { p.out++; return make([]byte, n) }
func (p *countingPool) Free([]byte)        { p.out-- }

// world is a storage process, its disks and the guards that talk to it.
type world struct {
	t       *testing.T
	now     clock.Instant
	o       Options
	c       *Core
	disks   map[string]*fakeDisk
	conns   map[string]Conn
	handles map[string]wire.Handle // last one by guard
	lastID  uint64
	ready   Ready
	out     strings.Builder
}

func (w *world) start(boot string, m Mutations) {
	w.o = Options{Node: id("S"), Cluster: id("K"), Generation: 1, Session: id(fmt.Sprintf("session%d", w.lastID)), Boot: id(boot),
		Pool: &countingPool{}, Mutations: m}
	w.c = New(w.o)
	w.conns = map[string]Conn{}
	var names []string
	for n := range w.disks {
		names = append(names, n)
	}
	slices.Sort(names)
	for _, n := range names {
		w.c.AddDisk(w.now, w.disks[n], ids.ID{})
	}
}

func promiseText(p repl.Promise) string {
	return fmt.Sprintf("%d.%d@%s/%s", p.Epoch, p.Inc, name(p.Nonce), name(p.Node))
}

var statusNames = map[wire.Status]string{wire.OK: "ok", wire.StaleEpoch: "stale-epoch", wire.StaleCfg: "stale-cfg", wire.OtherGeneration: "other-generation",
	wire.OtherNonce: "other-nonce", wire.DiskFailed: "disk-failed", wire.Busy: "busy", wire.BadHandle: "bad-handle", wire.BadRequest: "bad-request",
	wire.LeaseRunning: "lease-running", wire.Released: "released", wire.VersionMismatch: "version-mismatch"}
var grantNames = []string{"none", "live", "stalled", "lapsed", "unknown"}

func (w *world) drain() {
	w.c.Ready(w.now, &w.ready)
	for _, s := range w.ready.Sends {
		guard := "?"
		for g, c := range w.conns {
			if c == s.Conn {
				guard = g
			}
		}
		fmt.Fprintf(&w.out, "-> %s ", guard)
		switch m := s.Msg.(type) {
		case *wire.HelloAck:
			fmt.Fprintf(&w.out, "hello-ack %s disks=%d\n", statusNames[m.Status], len(m.Disks))
		case *wire.OpenAck:
			fmt.Fprintf(&w.out, "open-ack %s promised=%s grant=%s", statusNames[m.Status], promiseText(m.Promised), grantNames[m.Grant])
			if m.GrantLeft > 0 {
				fmt.Fprintf(&w.out, " left=%v", m.GrantLeft)
			}
			if m.Cold {
				fmt.Fprint(&w.out, " cold")
			}
			if m.Released {
				fmt.Fprint(&w.out, " released")
			}
			if m.Told.CfgVersion > 0 {
				fmt.Fprintf(&w.out, " told=%d", m.Told.CfgVersion)
			}
			fmt.Fprintln(&w.out)
			if m.Handle != 0 {
				w.handles[guard] = m.Handle
			}
		case *wire.HeartbeatAck:
			fmt.Fprintf(&w.out, "grant %v", m.Grant)
			for _, r := range m.Refused {
				fmt.Fprintf(&w.out, " refused %s by %s", statusNames[r.Status], promiseText(r.Promised))
			}
			fmt.Fprintln(&w.out)
		case *wire.Ack:
			fmt.Fprintf(&w.out, "ack %s %d/%d", statusNames[m.Status], m.Mark.Epoch, m.Mark.Wseq)
			if m.Promised.Epoch > 0 {
				fmt.Fprintf(&w.out, " promised=%s", promiseText(m.Promised))
			}
			fmt.Fprintln(&w.out)
		case *wire.FlushAck:
			fmt.Fprintf(&w.out, "flush-ack %s %d\n", statusNames[m.Status], m.Upto)
		case *wire.ReadReply:
			fmt.Fprintf(&w.out, "read-reply %s tags=%d\n", statusNames[m.Status], len(m.Tags))
		case *wire.Window:
			fmt.Fprintf(&w.out, "window %s entries=%d last=%v\n", statusNames[m.Status], len(m.Entries), m.Last)
		case *wire.ConfigAck:
			fmt.Fprintf(&w.out, "config-ack %s\n", statusNames[m.Status])
		case *wire.SimpleAck:
			fmt.Fprintf(&w.out, "ack %s\n", statusNames[m.Status])
		default:
			fmt.Fprintf(&w.out, "%T\n", m)
		}
	}
	for _, c := range w.ready.Closes {
		fmt.Fprintf(&w.out, "close: %v\n", c.Why)
	}
	for _, e := range w.ready.Events {
		if e.Kind != Promised {
			fmt.Fprintf(&w.out, "event %d status=%s %v\n", e.Kind, statusNames[e.Status], e.Err)
		}
	}
	var names []string
	for n := range w.disks {
		names = append(names, n)
	}
	slices.Sort(names)
	for _, n := range names {
		for _, l := range w.disks[n].log {
			fmt.Fprintf(&w.out, "%s: %s\n", n, l)
		}
		w.disks[n].log = nil
	}
}

func (w *world) send(guard string, m wire.Message) {
	w.c.Received(w.now, w.conns[guard], m)
	w.drain()
}

type args struct{ d *datadriven.TestData }

func (a args) str(key, def string) string {
	for _, c := range a.d.CmdArgs {
		if c.Key == key && len(c.Vals) > 0 {
			return c.Vals[0]
		}
	}
	return def
}

func (a args) has(key string) bool { return a.d.HasArg(key) }

func (a args) num(key string, def int) int {
	n, err := strconv.Atoi(a.str(key, strconv.Itoa(def)))
	if err != nil {
		a.d.Fatalf(nil, "%s: %v", key, err)
	}
	return n
}

func block(fill byte) []byte {
	b := make([]byte, repl.BlockBytes)
	for i := range b {
		b[i] = fill
	}
	return b
}

func (w *world) openMessage(a args, who string) *wire.Open {
	m := &wire.Open{
		Volume: id(a.str("vol", "v")), Disk: id(a.str("disk", "d1")), SizeBytes: 1 << 20,
		Promise: repl.Promise{
			Generation: repl.Generation{Cluster: 1, Volume: uint32(a.num("gen", 1))},
			Epoch:      uint64(a.num("epoch", 1)), Nonce: id(a.str("nonce", "n"+a.str("epoch", "1"))), Inc: uint32(a.num("inc", 0)),
			Node: id(a.str("node", who)), Run: id(a.str("run", "r1")),
		},
	}
	if a.has("try") {
		m.Flags |= wire.OpenTry
	}
	if p := a.str("dead", ""); p != "" {
		m.Flags |= wire.OpenPredecessorDead
		f := strings.Split(p, ".")
		epoch, _ := strconv.Atoi(f[0])
		inc, _ := strconv.Atoi(f[1])
		m.Predecessor = wire.PredecessorID{Epoch: uint64(epoch), Inc: uint32(inc), Nonce: id(a.str("dead-nonce", "n"+f[0]))}
	}
	return m
}

// run does one command of a script. A guard is a letter and a number; its node
// is the letter.
func (w *world) run(d *datadriven.TestData) string {
	w.out.Reset()
	a := args{d}
	guard := ""
	if len(d.CmdArgs) > 0 && len(d.CmdArgs[0].Vals) == 0 {
		guard = d.CmdArgs[0].Key
	}
	w.lastID++
	req, h := w.lastID, w.handles[guard]
	mark := repl.Mark{Epoch: uint64(a.num("epoch", 1)), Wseq: uint64(a.num("wseq", 1))}
	switch d.Cmd {
	case "start":
		w.disks = map[string]*fakeDisk{}
		for _, n := range strings.Fields(d.Input) {
			w.disks[n] = newFake(n)
		}
		w.start("boot1", Mutations{})
	case "restart":
		w.start(a.str("boot", "boot1"), Mutations{
			NoRestartWait: a.has("no-wait"), IgnoreCold: a.has("ignore-cold"), OpenBeforeDurable: a.has("open-before-durable"),
			UnknownAsLapsed: a.has("unknown-as-lapsed"), NoReservation: a.has("no-reservation"),
		})
	case "opening":
		w.c.Opening(id(a.str("disk", "d1")), !a.has("failed"))
	case "connect":
		w.conns[guard] = Conn(w.lastID)
		w.c.ConnOpened(w.conns[guard], id(guard[:1]))
		w.send(guard, &wire.Hello{Cluster: id(a.str("cluster", "K")), Generation: 1, Node: id(a.str("node", guard[:1])), Guard: id(guard),
			ProtoMin: uint8(a.num("min", wire.ProtocolVersion)), ProtoMax: uint8(a.num("max", wire.ProtocolVersion))})
	case "disconnect":
		w.c.ConnClosed(w.conns[guard])
		w.drain()
	case "open":
		m := w.openMessage(a, guard[:1])
		m.ReqID = req
		w.send(guard, m)
	case "heartbeat":
		hb := &wire.Heartbeat{SendTime: w.now}
		if a.has("stalled") {
			hb.Stalled = 3 * time.Second
		}
		if h != 0 && !a.has("empty") {
			hb.Volumes = []wire.HeartbeatVolume{{Handle: h, Piggyback: wire.Piggyback{FlushMark: repl.Mark{Epoch: uint64(a.num("epoch", 0)), Wseq: uint64(a.num("flushed", 0))}}}}
		}
		w.send(guard, hb)
	case "write":
		b := block(byte(mark.Wseq))
		crc := []uint32{wire.Checksum(b)}
		if a.has("bad-crc") {
			crc[0]++
		}
		w.o.Pool.Alloc(0)
		w.send(guard, &wire.Write{ReqID: req, Handle: h, Mark: mark, Offset: int64(a.num("block", 0)) * repl.BlockBytes, Data: b, CRC: crc})
	case "discard":
		w.send(guard, &wire.Zero{ReqID: req, Handle: h, Mark: mark, Flags: wire.ZeroDiscard, Offset: int64(a.num("block", 0)) * repl.BlockBytes, Length: int64(a.num("count", 8)) * repl.BlockBytes})
	case "flush":
		w.send(guard, &wire.Flush{ReqID: req, Handle: h, Upto: mark.Wseq})
	case "read":
		w.send(guard, &wire.Read{ReqID: req, Handle: h, Offset: int64(a.num("block", 0)) * repl.BlockBytes, Length: repl.BlockBytes})
	case "window":
		w.send(guard, &wire.WindowReq{ReqID: req, Handle: h, From: repl.Mark{Epoch: uint64(a.num("epoch", 0)), Wseq: uint64(a.num("wseq", 0))}})
	case "config":
		var snaps []uint32
		if n := a.num("snap", 0); n > 0 {
			snaps = []uint32{uint32(n)}
		}
		w.send(guard, &wire.Config{ReqID: req, Handle: h, Told: wire.Told{Epoch: mark.Epoch, CfgVersion: uint32(a.num("version", 1)), Complete: a.has("complete"), Whole: a.has("whole"), Snaps: snaps}})
	case "snap-read":
		w.send(guard, &wire.SnapRead{ReqID: req, Volume: id("v"), Disk: id(a.str("disk", "d1")), Generation: repl.Generation{Cluster: uint32(a.num("of", 1)), Volume: 1},
			CfgVersion: uint32(a.num("version", 1)), Snapshot: uint32(a.num("snap", 2)), Offset: int64(a.num("block", 0)) * repl.BlockBytes, Length: repl.BlockBytes})
	case "release":
		w.send(guard, &wire.Release{ReqID: req, Handle: h})
	case "sync-begin":
		w.send(guard, &wire.SyncBegin{ReqID: req, Handle: h, Partial: a.has("partial")})
	case "sync-end":
		w.send(guard, &wire.SyncEnd{ReqID: req, Handle: h})
	case "sync":
		m := &wire.SyncWrite{ReqID: req, Handle: h, Mark: mark, Extent: uint64(a.num("extent", 0)), Object: uint32(a.num("object", 0)), Tombstone: a.has("tombstone")}
		for _, n := range strings.Fields(d.Input) {
			k, _ := strconv.Atoi(n)
			b := block(byte(k))
			m.Blocks = append(m.Blocks, wire.SyncBlock{Block: uint16(k), Tag: wire.Tag{CRC: wire.Checksum(b), Stamp: 1}})
			m.Data = append(m.Data, b...)
		}
		w.send(guard, m)
	case "drop":
		w.c.Drop(w.now, 1, id(a.str("disk", "d1")), id(a.str("vol", "v")))
		w.drain()
	case "hold":
		w.disks[a.str("disk", "d1")].held = true
	case "complete":
		f := w.disks[a.str("disk", "d1")]
		f.held = false
		f.done, f.waiting = append(f.done, f.waiting...), nil
		w.c.DiskDone(f.id, 0, nil)
		w.drain()
	case "die":
		f := w.disks[a.str("disk", "d1")]
		f.died = errors.New("I/O error")
		w.c.DiskDone(f.id, 0, f.died)
		w.drain()
	case "wait":
		by, err := time.ParseDuration(d.CmdArgs[0].Key)
		if err != nil {
			d.Fatalf(w.t, "%v", err)
		}
		w.now = w.now.Add(by)
		w.c.Tick(w.now)
		w.drain()
	default:
		d.Fatalf(w.t, "command %s", d.Cmd)
	}
	if w.out.Len() == 0 {
		return "ok"
	}
	return w.out.String()
}

func TestScripts(t *testing.T) {
	datadriven.Walk(t, "testdata", func(t *testing.T, path string) {
		w := &world{t: t, now: 1_000_000_000_000, handles: map[string]wire.Handle{}}
		datadriven.RunTest(t, path, func(t *testing.T, d *datadriven.TestData) string { return w.run(d) })
	})
}
