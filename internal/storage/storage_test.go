package storage

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"roseau/internal/base/clock"
	"roseau/internal/base/errs"
	"roseau/internal/base/ids"
	"roseau/internal/block/disk"
	"roseau/internal/block/wire"
	"roseau/internal/core/repl"
	"roseau/internal/driver/blockdev"
	"roseau/internal/driver/storagectl"
	"roseau/internal/model"
	"roseau/internal/nodeconf"
	"roseau/internal/pki"
)

// The test binary is the storage process, too, so that it can be killed.
const childEnv = "ROSEAU_STORAGE_TEST_DIR"

func TestMain(m *testing.M) {
	if dir := os.Getenv(childEnv); dir != "" {
		log := slog.New(slog.NewTextHandler(os.Stderr, nil))
		o := dirOptions(dir, log)
		o.Ready = func() { fmt.Println("ready") }
		if err := Run(context.Background(), o); err != nil {
			log.Error("storage ended", "err", err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

const testLease = 300 * time.Millisecond

func dirOptions(dir string, log *slog.Logger) Options {
	at := func(name string) string { return filepath.Join(dir, name) }
	addr, _ := os.ReadFile(at("listen"))
	return Options{
		Log: log, Clock: clock.System{}, NodeConfig: at("node.json"), PKI: at("pki"), Config: at("storage.json"), CareFile: at("care.json"), BootID: at("boot-id"),
		Socket: at("storage.sock"), ControlSocket: at("control.sock"), Listen: string(addr), Lab: true, LabDisks: at("disks"), Lease: testLease, FindEvery: testLease,
	}
}

// rig is a node in a directory, with identities for itself and two peers.
type rig struct {
	t        *testing.T
	dir      string
	cluster  ids.ID
	self     ids.ID
	peers    [2]ids.ID
	identity [2]*pki.Identity
	other    *pki.Identity // of another cluster
	ctl      *storagectl.Client
	cmd      *exec.Cmd
	stop     func() // of an in-process run
	logs     *lockedBuffer
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func issue(t *testing.T, ca *pki.CA, node ids.ID) pki.Files {
	t.Helper()
	key, csr, err := pki.NewRequest(node.String())
	if err != nil {
		t.Fatal(err)
	}
	cert, err := ca.SignNode(csr, node, []net.IP{net.IPv4(127, 0, 0, 1)}, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	return pki.Files{CA: ca.CertPEM(), Cert: cert, Key: key}
}

func newRig(t *testing.T) *rig {
	t.Helper()
	dir, err := os.MkdirTemp("", "rs") // short: sockets live in it
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	r := &rig{t: t, dir: dir, cluster: ids.New(), self: ids.New(), logs: new(lockedBuffer)}
	ca, err := pki.NewCA(r.cluster, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	r.must(issue(t, ca, r.self).Write(r.path("pki")))
	for i := range r.peers {
		r.peers[i] = ids.New()
		r.identity[i], err = pki.FromFiles(issue(t, ca, r.peers[i]))
		r.must(err)
	}
	ca2, err := pki.NewCA(ids.New(), time.Now())
	r.must(err)
	r.other, err = pki.FromFiles(issue(t, ca2, ids.New()))
	r.must(err)
	cfg := nodeconf.Config{Cluster: r.cluster, Node: r.self, Name: "n1", Addresses: map[model.NetworkRole][]string{
		model.RoleCluster: {"127.0.0.1"}, model.RoleStorage: {"127.0.0.1"}}}
	r.must(cfg.Save(r.path("node.json")))
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	r.must(err)
	r.must(os.WriteFile(r.path("listen"), []byte(ln.Addr().String()), 0o600))
	r.must(ln.Close())
	r.must(os.Mkdir(r.path("disks"), 0o700))
	r.ctl = storagectl.New(r.path("control.sock"))
	return r
}

func (r *rig) path(name string) string { return filepath.Join(r.dir, name) }

func (r *rig) must(err error) {
	r.t.Helper()
	if err != nil {
		r.t.Fatalf("%v\n%s", err, r.logs)
	}
}

// start runs the process in a child and waits until it serves.
func (r *rig) start() {
	r.t.Helper()
	r.cmd = exec.Command(os.Args[0])
	r.cmd.Env = append(os.Environ(), childEnv+"="+r.dir)
	r.cmd.Stderr = r.logs
	out, err := r.cmd.StdoutPipe()
	r.must(err)
	r.must(r.cmd.Start())
	cmd := r.cmd
	r.t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	line := make([]byte, 5)
	if _, err := out.Read(line); err != nil || string(line) != "ready" {
		r.t.Fatalf("storage process: %q, %v\n%s", line, err, r.logs)
	}
}

func (r *rig) kill() {
	r.t.Helper()
	r.must(r.cmd.Process.Kill())
	r.cmd.Wait()
}

// run runs the process inside the test.
func (r *rig) run(change func(*Options)) {
	r.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	ready, done := make(chan struct{}), make(chan error, 1)
	o := dirOptions(r.dir, slog.New(slog.NewTextHandler(r.logs, nil)))
	o.Ready = func() { close(ready) }
	if change != nil {
		change(&o)
	}
	go func() { done <- Run(ctx, o) }()
	select {
	case <-ready:
	case err := <-done:
		r.t.Fatalf("run: %v\n%s", err, r.logs)
	}
	r.stop = sync.OnceFunc(func() {
		cancel()
		select {
		case err := <-done:
			if err != nil {
				r.t.Errorf("run: %v", err)
			}
		case <-time.After(20 * time.Second):
			r.t.Errorf("the process does not end\n%s", r.logs)
		}
	})
	r.t.Cleanup(r.stop)
}

func (r *rig) claim(name string) storagectl.Device {
	r.t.Helper()
	d, err := r.ctl.Claim(r.ctx(), storagectl.ClaimRequest{Path: filepath.Join(r.dir, "disks", name), SizeBytes: 96 << 20})
	r.must(err)
	return d
}

func (r *rig) ctx() context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	r.t.Cleanup(cancel)
	return ctx
}

// guard is a hand-written client.
type guard struct {
	r     *rig
	node  ids.ID
	nc    net.Conn
	dec   *wire.Decoder
	hello *wire.HelloAck
	req   uint64
}

// connect dials over mutual TLS as peer i, or over the unix socket with i < 0.
func (r *rig) connect(i int) *guard {
	r.t.Helper()
	g := &guard{r: r, node: r.self}
	var err error
	if i < 0 {
		g.nc, err = net.Dial("unix", r.path("storage.sock"))
		r.must(err)
	} else {
		addr, _ := os.ReadFile(r.path("listen"))
		g.node = r.peers[i]
		g.nc, err = tls.Dial("tcp", string(addr), r.identity[i].ClientTLS(r.self))
		r.must(err)
	}
	r.t.Cleanup(func() { g.nc.Close() })
	g.nc.SetDeadline(time.Now().Add(30 * time.Second))
	g.dec = wire.NewDecoder(g.nc, wire.Heap{})
	g.send(&wire.Hello{Cluster: r.cluster, Generation: 1, Node: g.node, Guard: ids.New(), ProtoMin: wire.MinVersion, ProtoMax: wire.ProtocolVersion})
	g.hello = g.next().(*wire.HelloAck)
	if g.hello.Status != wire.OK || g.hello.Node != r.self {
		r.t.Fatalf("hello: %+v", g.hello)
	}
	g.dec.SetVersion(g.hello.Proto)
	return g
}

func (g *guard) send(m wire.Message) {
	g.r.t.Helper()
	head, data, err := wire.Append(nil, m)
	g.r.must(err)
	_, err = g.nc.Write(append(head, data...))
	g.r.must(err)
}

func (g *guard) next() wire.Message {
	g.r.t.Helper()
	m, err := g.dec.Next()
	g.r.must(err)
	return m
}

// ask sends a request and returns its answer.
func ask[A wire.Message](g *guard, m wire.Message) A {
	g.r.t.Helper()
	g.send(m)
	a, ok := g.next().(A)
	if !ok {
		g.r.t.Fatalf("%T is answered by %T", m, a)
	}
	return a
}

func (g *guard) id() uint64 { g.req++; return g.req }

var testRun, testVolume = ids.New(), ids.New()

// open opens the test volume, as often as it takes.
func (g *guard) open(disk ids.ID, epoch uint64) *wire.OpenAck {
	g.r.t.Helper()
	nonce := ids.ID{1, byte(epoch)}
	for range 100 {
		a := ask[*wire.OpenAck](g, &wire.Open{ReqID: g.id(), Volume: testVolume, Disk: disk, SizeBytes: 64 << 20,
			Promise: repl.Promise{Generation: repl.Generation{Cluster: 1, Volume: 1}, Epoch: epoch, Nonce: nonce, Node: g.node, Run: testRun}})
		if a.Status != wire.LeaseRunning {
			return a
		}
		if a.GrantLeft <= 0 || a.GrantLeft > testLease*11/10 {
			g.r.t.Fatalf("lease-running with %v left", a.GrantLeft)
		}
		time.Sleep(a.GrantLeft)
	}
	g.r.t.Fatal("the lease never ends")
	return nil
}

func content(n int, seed byte) []byte {
	b := make([]byte, n*repl.BlockBytes)
	for i := range b {
		b[i] = byte(i>>12) ^ byte(i) ^ seed
	}
	return b
}

func crcs(b []byte) (list []uint32) {
	for ; len(b) > 0; b = b[repl.BlockBytes:] {
		list = append(list, wire.Checksum(b[:repl.BlockBytes]))
	}
	return list
}

func (g *guard) write(h wire.Handle, epoch, wseq uint64, block int, data []byte) {
	g.r.t.Helper()
	a := ask[*wire.Ack](g, &wire.Write{ReqID: g.id(), Handle: h, Mark: repl.Mark{Epoch: epoch, Wseq: wseq},
		Offset: int64(block) * repl.BlockBytes, Data: data, CRC: crcs(data)})
	if a.Status != wire.OK || a.ReqID != g.req {
		g.r.t.Fatalf("write %d: %+v\n%s", wseq, a, g.r.logs)
	}
}

func (g *guard) read(h wire.Handle, block int, want []byte) {
	g.r.t.Helper()
	a := ask[*wire.ReadReply](g, &wire.Read{ReqID: g.id(), Handle: h, Offset: int64(block) * repl.BlockBytes, Length: int64(len(want))})
	if a.Status != wire.OK || !bytes.Equal(a.Data, want) {
		g.r.t.Fatalf("read at block %d: status %d, %d bytes\n%s", block, a.Status, len(a.Data), g.r.logs)
	}
}

// Written and flushed by one guard over TLS; the process is killed; a guard on
// another node waits for the lease, takes over, finds everything.
func TestKillAndTakeOver(t *testing.T) {
	r := newRig(t)
	r.start()
	d := r.claim("d1")
	a := r.connect(0)
	if len(a.hello.Disks) != 1 || a.hello.Disks[0] != d.ID {
		t.Fatalf("disks %v, want %v", a.hello.Disks, d.ID)
	}
	o := a.open(d.ID, 1)
	if o.Status != wire.OK || o.Cold {
		t.Fatalf("open: %+v", o)
	}
	one, two := content(16, 1), content(1024, 2)
	a.write(o.Handle, 1, 1, 0, one)
	a.write(o.Handle, 1, 2, 1024, two)
	if f := ask[*wire.FlushAck](a, &wire.Flush{ReqID: a.id(), Handle: o.Handle, Upto: 2}); f.Status != wire.OK || f.Session != a.hello.Session {
		t.Fatalf("flush: %+v", f)
	}
	a.write(o.Handle, 1, 3, 1, content(1, 3))
	if hb := ask[*wire.HeartbeatAck](a, &wire.Heartbeat{SendTime: 7, Volumes: []wire.HeartbeatVolume{{Handle: o.Handle}}}); hb.Grant != testLease || len(hb.Refused) != 0 || hb.SendTime != 7 {
		t.Fatalf("heartbeat: %+v", hb)
	}
	want := bytes.Clone(one)
	copy(want[repl.BlockBytes:], content(1, 3))
	a.read(o.Handle, 0, want)

	r.kill()
	r.start()
	b := r.connect(1)
	if b.hello.Session == a.hello.Session {
		t.Fatal("a new process has the old session")
	}
	try := ask[*wire.OpenAck](b, &wire.Open{ReqID: b.id(), Flags: wire.OpenTry, Volume: testVolume, Disk: d.ID, SizeBytes: 64 << 20,
		Promise: repl.Promise{Generation: repl.Generation{Cluster: 1, Volume: 1}, Epoch: 2, Nonce: ids.ID{9}, Node: b.node, Run: testRun}})
	if try.Status != wire.OK || try.Grant != wire.GrantUnknown {
		t.Fatalf("prepare right after a restart: %+v", try)
	}
	o2 := b.open(d.ID, 2)
	if o2.Status != wire.OK || o2.Cold || o2.DurableMark != (repl.Mark{Epoch: 1, Wseq: 2}) || o2.MaxMark != (repl.Mark{Epoch: 1, Wseq: 3}) {
		t.Fatalf("open: %+v", o2)
	}
	w := ask[*wire.Window](b, &wire.WindowReq{ReqID: b.id(), Handle: o2.Handle, From: repl.Mark{Epoch: 1, Wseq: 1}})
	if w.Status != wire.OK || !w.Last || len(w.Entries) != 2 || w.Entries[1].Mark.Wseq != 3 || !w.Entries[1].Verified {
		t.Fatalf("window: %+v", w)
	}
	b.read(o2.Handle, 0, want)
	b.read(o2.Handle, 1024, two)
}

func TestUnixSocketAndRestart(t *testing.T) {
	r := newRig(t)
	r.run(nil)
	d := r.claim("d1")
	g := r.connect(-1)
	o := g.open(d.ID, 1)
	g.write(o.Handle, 1, 1, 5, content(3, 9))
	g.read(o.Handle, 5, content(3, 9))
	if z := ask[*wire.Ack](g, &wire.Zero{ReqID: g.id(), Handle: o.Handle, Mark: repl.Mark{Epoch: 1, Wseq: 2}, Offset: 6 * repl.BlockBytes, Length: repl.BlockBytes}); z.Status != wire.OK {
		t.Fatalf("zero: %+v", z)
	}
	want := content(3, 9)
	clear(want[repl.BlockBytes:][:repl.BlockBytes])
	g.read(o.Handle, 5, want)

	// Two requests to the same disk at once, a stranger's certificate, no
	// certificate.
	if second, err := r.ctl.Claim(r.ctx(), storagectl.ClaimRequest{Path: d.Path}); err != nil || second.ID != d.ID {
		t.Fatalf("claimed twice: %+v, %v", second, err)
	}
	addr, _ := os.ReadFile(r.path("listen"))
	for name, cfg := range map[string]*tls.Config{"stranger": r.other.ClientTLS(ids.ID{}), "nobody": {InsecureSkipVerify: true}} {
		cfg.InsecureSkipVerify = true
		nc, err := tls.Dial("tcp", string(addr), cfg)
		if err == nil {
			nc.SetDeadline(time.Now().Add(10 * time.Second))
			_, err = nc.Read(make([]byte, 1)) // TLS 1.3: the refusal comes with the first read
			nc.Close()
		}
		if err == nil {
			t.Errorf("%s was let in", name)
		}
	}
	if st, err := os.Stat(r.path("storage.sock")); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("socket: %v, %v", st.Mode(), err)
	}

	// A clean stop, and everything is there again.
	r.stop()
	r.run(nil)
	g = r.connect(-1)
	o = g.open(d.ID, 1)
	if o.Status != wire.OK || o.Cold {
		t.Fatalf("open: %+v", o)
	}
	g.read(o.Handle, 5, want)

	// While it runs nobody else may open the disk; afterwards fsck finds it sound.
	if _, err := Fsck(d.Path, disk.FsckOptions{Data: true}); !errors.Is(err, errs.Conflict) {
		t.Fatalf("fsck of an open disk: %v", err)
	}
	r.stop()
	var items []disk.Item
	if rep, err := Fsck(d.Path, disk.FsckOptions{Data: true, Dump: func(i disk.Item) { items = append(items, i) }}); err != nil || len(rep.Problems) != 0 || len(rep.Volumes) != 1 {
		t.Fatalf("fsck: %+v, %v", rep, err)
	}
	if !slices.ContainsFunc(items, func(i disk.Item) bool {
		return i.Record != nil && i.Record.Volume != nil && i.Record.Volume.Volume == testVolume || i.Volume != nil && i.Volume.Volume == testVolume
	}) {
		t.Fatalf("dump: %v", items)
	}

	// The node reboots: the boot identity is gone, the copy is cold.
	r.must(os.Remove(r.path("boot-id")))
	r.run(nil)
	if o = r.connect(-1).open(d.ID, 1); o.Status != wire.OK || !o.Cold {
		t.Fatalf("open after a reboot: %+v", o)
	}
}

func TestControl(t *testing.T) {
	r := newRig(t)
	r.run(nil)
	ctx := r.ctx()
	foreign := filepath.Join(r.dir, "disks", "foreign")
	r.must(blockdev.Create(foreign, 128<<20))
	f, err := os.OpenFile(foreign, os.O_WRONLY, 0)
	r.must(err)
	_, err = f.WriteAt([]byte("XFSB"), 0)
	r.must(errors.Join(err, f.Close()))

	_, err = r.ctl.Claim(ctx, storagectl.ClaimRequest{Path: foreign})
	if !errors.Is(err, errs.Conflict) || !strings.Contains(err.Error(), "xfs") || errs.Hint(err) == "" {
		t.Fatalf("claim of a disk with a file system: %v, hint %q", err, errs.Hint(err))
	}
	for name, req := range map[string]storagectl.ClaimRequest{
		"relative path": {Path: "disks/foreign"},
		"no such file":  {Path: filepath.Join(r.dir, "disks", "none")},
		"too small":     {Path: filepath.Join(r.dir, "disks", "small"), SizeBytes: 1 << 20},
		"wrong name":    {Path: foreign, WipeName: foreign + "x"},
	} {
		if _, err := r.ctl.Claim(ctx, req); errs.Kind(err) == nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := os.Stat(filepath.Join(r.dir, "disks", "small")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("something half-made stays: %v", err)
	}
	list, err := r.ctl.Devices(ctx)
	if err != nil || len(list) != 1 || list[0].State != model.DiskInUse || !strings.Contains(list[0].Content, "xfs") {
		t.Fatalf("devices: %+v, %v", list, err)
	}
	r.must(r.ctl.Wipe(ctx, foreign))
	d, err := r.ctl.Claim(ctx, storagectl.ClaimRequest{Path: foreign})
	if err != nil || d.State != model.DiskActive || d.Data == 0 || d.ID.IsZero() {
		t.Fatalf("claim after wipe: %+v, %v\n%s", d, err, r.logs)
	}
	if err := r.ctl.Wipe(ctx, foreign); !errors.Is(err, errs.Conflict) {
		t.Fatalf("wipe of a claimed disk: %v", err)
	}

	g := r.connect(-1)
	o := g.open(d.ID, 1)
	g.write(o.Handle, 1, 1, 0, content(4, 1))
	s, err := r.ctl.Status(ctx)
	if err != nil || len(s.Disks) != 1 || s.Disks[0].Volumes != 1 || s.Disks[0].Open != 1 || s.Disks[0].Used == 0 {
		t.Fatalf("status: %+v, %v", s, err)
	}
	// Nothing is freed for a record that is none, or that names other disks.
	for _, rec := range []string{`{}`, `{"deleted":"2026-01-01T00:00:00Z","disks":["` + ids.New().String() + `"]}`} {
		if err := r.ctl.DeleteVolume(ctx, storagectl.DeleteRequest{Volume: testVolume, Disks: []ids.ID{d.ID}, Record: json.RawMessage(rec)}); !errors.Is(err, errs.Invalid) {
			t.Errorf("record %s: %v", rec, err)
		}
	}
	r.must(r.ctl.DeleteVolume(ctx, storagectl.DeleteRequest{Volume: testVolume, Disks: []ids.ID{d.ID},
		Record: json.RawMessage(`{"deleted":"2026-01-01T00:00:00Z","disks":["` + d.ID.String() + `"]}`)}))
	if s, err := r.ctl.Status(ctx); err != nil || s.Disks[0].Volumes != 0 {
		t.Fatalf("after the deletion: %+v, %v", s, err)
	}
	r.must(r.ctl.Release(ctx, d.ID))
	if list, err = r.ctl.Devices(ctx); err != nil || len(list) != 1 || list[0].State != model.DiskFree {
		t.Fatalf("after the release: %+v, %v", list, err)
	}
}

// A disk that hangs keeps nothing but itself; one that fails is dead at once;
// the other goes on.
func TestSickDisks(t *testing.T) {
	r := newRig(t)
	var mu sync.Mutex
	open := map[string]*sickFile{}
	r.run(func(o *Options) {
		o.Open = func(path string) (blockdev.File, error) {
			f, err := blockdev.Open(path)
			if err != nil {
				return nil, err
			}
			s := &sickFile{File: f, hang: make(chan struct{})}
			mu.Lock()
			open[filepath.Base(path)] = s
			mu.Unlock()
			return s, nil
		}
	})
	sick := func(name string, how func(*sickFile)) {
		mu.Lock()
		defer mu.Unlock()
		f := open[name]
		f.mu.Lock()
		defer f.mu.Unlock()
		how(f)
	}
	d1, d2 := r.claim("d1"), r.claim("d2")
	g := r.connect(-1)
	o1, o2 := g.open(d1.ID, 1), g.open(d2.ID, 1)
	g.write(o1.Handle, 1, 1, 0, content(1, 1))
	g.write(o2.Handle, 1, 1, 0, content(1, 2))

	sick("d2", func(f *sickFile) { f.hung = true })
	g.send(&wire.Write{ReqID: 999, Handle: o2.Handle, Mark: repl.Mark{Epoch: 1, Wseq: 2}, Data: content(1, 3), CRC: crcs(content(1, 3))})
	g.write(o1.Handle, 1, 2, 1, content(1, 4))
	g.read(o1.Handle, 1, content(1, 4))
	if hb := ask[*wire.HeartbeatAck](g, &wire.Heartbeat{}); hb.Grant != testLease {
		t.Fatalf("heartbeat beside a hung disk: %+v", hb)
	}
	sick("d2", func(f *sickFile) { f.hung = false; close(f.hang) })
	if a, ok := g.next().(*wire.Ack); !ok || a.ReqID != 999 || a.Status != wire.OK {
		t.Fatalf("after the hang: %+v", a)
	}

	sick("d2", func(f *sickFile) { f.err = errors.New("input/output error") })
	if a := ask[*wire.Ack](g, &wire.Write{ReqID: g.id(), Handle: o2.Handle, Mark: repl.Mark{Epoch: 1, Wseq: 3}, Data: content(1, 3), CRC: crcs(content(1, 3))}); a.Status != wire.DiskFailed {
		t.Fatalf("write to a failing disk: %+v", a)
	}
	if a := g.open(d2.ID, 1); a.Status != wire.DiskFailed {
		t.Fatalf("open of a dead disk: %+v", a)
	}
	g.write(o1.Handle, 1, 3, 2, content(1, 5))
	s, err := r.ctl.Status(r.ctx())
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range s.Disks {
		want := model.DiskActive
		if d.ID == d2.ID {
			want = model.DiskFailed
		}
		if d.State != want {
			t.Errorf("disk %s: %s (%s), want %s", d.Path, d.State, d.Reason, want)
		}
	}

	// Nothing could be written to it any more, and yet no restart makes it good again.
	r.stop()
	r.run(nil)
	if d := r.diskStatus(d2.ID); d.State != model.DiskFailed || !strings.Contains(d.Reason, "failed") {
		t.Errorf("after a restart: %s (%s)", d.State, d.Reason)
	}
	if d := r.diskStatus(d1.ID); d.State != model.DiskActive {
		t.Errorf("the other disk after a restart: %s (%s)", d.State, d.Reason)
	}

	// Its device may be used again, as another disk.
	if err := r.ctl.Wipe(r.ctx(), d2.Path, d2.ID); !errors.Is(err, errs.Conflict) {
		t.Errorf("wipe of a disk that is counted on: %v", err)
	}
	r.must(r.ctl.Wipe(r.ctx(), d2.Path, d1.ID))
	d3 := r.claim("d2")
	for range 2 {
		if d := r.diskStatus(d2.ID); d3.ID == d2.ID || d.State != model.DiskFailed {
			t.Errorf("the disk that was wiped: %+v, the new one is %s", d, d3.ID)
		}
		r.serves(d3.ID, d2.Path)
		r.serves(d1.ID, d1.Path)
		r.stop()
		r.run(nil)
	}
}

// sickFile is a disk that hangs or fails on order.
type sickFile struct {
	blockdev.File
	mu   sync.Mutex
	hung bool
	hang chan struct{}
	err  error
}

func (f *sickFile) sick() error {
	f.mu.Lock()
	hung, err := f.hung, f.err
	f.mu.Unlock()
	if hung {
		<-f.hang
	}
	return err
}

func (f *sickFile) WritevAt(b [][]byte, off int64) error {
	if err := f.sick(); err != nil {
		return err
	}
	return f.File.WritevAt(b, off)
}

func (f *sickFile) Datasync() error {
	if err := f.sick(); err != nil {
		return err
	}
	return f.File.Datasync()
}

func TestPool(t *testing.T) {
	p := new(pool)
	var all [][]byte
	for _, n := range []int{4096, 8192, 12288, 1 << 20, 4 << 20, 5 << 20} {
		b := p.Alloc(n)
		if len(b) != n || cap(b) < n {
			t.Fatalf("Alloc(%d): %d of %d", n, len(b), cap(b))
		}
		b[0], b[n-1] = 1, 2
		all = append(all, b)
	}
	for _, b := range all {
		p.Free(b)
	}
	if u := p.used.Load(); u != 0 {
		t.Fatalf("%d bytes in use", u)
	}
	if n := testing.AllocsPerRun(100, func() { p.Free(p.Alloc(4096)) }); n != 0 {
		t.Fatalf("%v allocations", n)
	}
}

func TestWALBytes(t *testing.T) {
	const gib = 1 << 30
	for disk, want := range map[int64]int64{512 << 20: 64 << 20, 4 * gib: 256 << 20, 100 * gib: 2 * gib, 50 * gib: gib, 8000 * gib: 2 * gib} {
		if got := walBytes(disk); got != want {
			t.Errorf("walBytes(%d) = %d, want %d", disk, got, want)
		}
	}
}
