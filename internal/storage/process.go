package storage

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"time"

	"roseau/internal/base/clock"
	"roseau/internal/base/errs"
	"roseau/internal/base/gc"
	"roseau/internal/base/ids"
	"roseau/internal/base/paths"
	"roseau/internal/base/sysmon"
	"roseau/internal/block/direct"
	"roseau/internal/block/disk"
	"roseau/internal/block/link"
	"roseau/internal/block/replica"
	"roseau/internal/block/wire"
	"roseau/internal/driver/blockdev"
	"roseau/internal/driver/blockdev/faultdisk"
	"roseau/internal/model"
	"roseau/internal/nodeconf"
	"roseau/internal/pki"
)

// Options of Run. Zero fields mean the paths of package paths; tests set their
// own.
type Options struct {
	Log   *slog.Logger
	Clock clock.Clock

	NodeConfig, PKI, Config, BootID string // files
	CareFile                        string // bad blocks and scrub passes of the disks
	Socket, ControlSocket           string
	CellsDir                        string          // default "cells" beside Socket; it must outlive the process, not the boot
	Listen                          string          // default ":7444" on all addresses
	Open                            blockdev.Opener // default OpenDisk
	Host                            blockdev.Host   // default blockdev.System
	Lab                             bool            // a node of a lab: only its own disk files exist
	LabDisks                        string          // directory of the lab's disk files
	Lease                           time.Duration   // default 3 s
	FindEvery                       time.Duration   // how often a disk is looked for that is not at its path; default 5 s
	Ready                           func()          // called when guards are served
}

// LabNode reports whether this process runs in a node of a lab.
func LabNode() bool {
	_, err := os.Stat(filepath.Dir(faultdisk.Dir))
	return os.Getenv("ROSEAU_LAB") != "" || err == nil
}

func (o *Options) defaults() {
	def := func(s *string, v string) {
		if *s == "" {
			*s = v
		}
	}
	def(&o.NodeConfig, paths.NodeConfig)
	def(&o.PKI, paths.PKI)
	def(&o.Config, paths.StorageConfig)
	def(&o.BootID, paths.BootID)
	def(&o.CareFile, paths.DiskCare)
	def(&o.Socket, paths.StorageSocket)
	def(&o.CellsDir, filepath.Join(filepath.Dir(o.Socket), "cells"))
	def(&o.ControlSocket, paths.StorageControlSocket)
	def(&o.Listen, ":"+strconv.Itoa(paths.PortStorage))
	def(&o.LabDisks, filepath.Join(paths.State, "lab-disks"))
	if o.FindEvery == 0 {
		o.FindEvery = findEvery
	}
	if o.Open == nil {
		o.Open = OpenDisk
	}
	if o.Host == (blockdev.Host{}) {
		o.Host = blockdev.System
	}
	if o.Clock == nil {
		o.Clock = clock.System{}
	}
	if o.Ready == nil {
		o.Ready = func() {}
	}
}

// OpenDisk opens the disk at path: through the fault layer if the lab has put
// one under it.
func OpenDisk(path string) (blockdev.File, error) {
	if faultdisk.IsFaultDisk(faultdisk.Dir, path) {
		return faultdisk.Open(faultdisk.Dir, path)
	}
	return blockdev.Open(path)
}

// process is one run of `roseau storage`.
type process struct {
	o       Options
	log     *slog.Logger
	node    *nodeconf.Config
	id      *pki.Identity
	boot    ids.ID
	session ids.ID
	pool    *pool
	q       queue
	assist  assistants
	reopen  func(d *device) // looks for a disk that is gone until Run ends
	wg      sync.WaitGroup  // everything but disk workers

	// Owned by the turn:
	core    *replica.Core
	conns   map[replica.Conn]*conn
	dirty   []*conn
	working []*device // to be submitted
	drops   map[uint64]chan<- wire.Status
	care    *care

	placeAsks  map[uint64]chan<- replica.Event // by token; room for one each
	placeAsked uint64
	nextN      uint64
	batch      []event
	ready      replica.Ready
	load       load
	armed      clock.Instant // when timer ends; 0 = it is not set
	timer      *time.Timer

	// mu guards the disks and what control requests change. Lock order: claims,
	// mu. It is never held over I/O.
	claims sync.Mutex // one claim, wipe or release at a time
	mu     sync.Mutex
	cfg    *config
	disks  []*device
	cells  map[ids.ID]*direct.Cells // of every disk that was opened
	// released are the disks that were given back: an opening that is under way must
	// not bring one back.
	released map[ids.ID]bool
}

// Run serves until ctx ends. On a machine that is in no cluster yet it waits to
// become a node.
func Run(ctx context.Context, o Options) error {
	gc.Set(gc.Storage)
	sysmon.Calm(o.Log)
	o.defaults()
	p := &process{o: o, log: o.Log, session: ids.New(), pool: new(pool), timer: time.NewTimer(time.Hour),
		conns: map[replica.Conn]*conn{}, drops: map[uint64]chan<- wire.Status{},
		placeAsks: map[uint64]chan<- replica.Event{}, cells: map[ids.ID]*direct.Cells{}, released: map[ids.ID]bool{}}
	p.q.wake, p.q.over, p.assist.wake = make(chan struct{}, 1), make(chan struct{}), make(chan struct{}, 1)
	if err := p.identify(ctx); err != nil {
		return err
	}
	var err error
	if p.boot, err = bootID(o.BootID, o.Lab); err != nil {
		return err
	}
	if p.cfg, err = loadConfig(o.Config); err != nil {
		return err
	}
	p.care = loadCare(o.CareFile, p.log)
	p.core = replica.New(replica.Options{
		Node: p.node.Node, Cluster: p.node.Cluster, Generation: p.node.Generation, Session: p.session, Boot: p.boot, Lease: o.Lease, Pool: p.pool,
	})
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	p.reopen = func(d *device) {
		p.spawn(func() {
			if p.opening(ctx, d, true) == nil {
				p.keepOpen(ctx, d, true, func() {})
			}
		})
	}
	fail := make(chan error, 4)
	p.spawn(func() { p.keepTime(ctx) })
	p.spawn(func() { p.relieve(ctx) })
	p.spawn(func() { p.keepCare(ctx) })
	defer p.shutdown(cancel)

	control, err := listenUnix(ctx, o.ControlSocket)
	if err != nil {
		return err
	}
	srv := &http.Server{Handler: p.control(), ReadHeaderTimeout: 5 * time.Second, BaseContext: func(net.Listener) context.Context { return ctx }}
	p.spawn(func() { p.serveControl(srv, control, fail) })
	defer srv.Close()

	p.openAll(ctx)
	var listeners []net.Listener
	for _, l := range []func() (net.Listener, error){
		func() (net.Listener, error) { return listenTCP(ctx, o.Listen, p.log) },
		func() (net.Listener, error) { return listenUnix(ctx, o.Socket) },
	} {
		ln, err := l()
		if err != nil {
			return err
		}
		defer ln.Close()
		listeners = append(listeners, ln)
	}
	questions, err := listenUnix(ctx, direct.SocketPath(o.Socket))
	if err != nil {
		return err
	}
	defer questions.Close()
	p.spawn(func() { p.acceptDirect(ctx, questions) })
	for _, ln := range listeners {
		p.spawn(func() { p.accept(ctx, ln, fail) })
	}
	p.log.Info("serving", "node", p.node.Node, "session", p.session, "listen", o.Listen)
	o.Ready()
	select {
	case <-ctx.Done():
		return nil
	case err := <-fail:
		return err
	}
}

func (p *process) spawn(f func()) {
	p.wg.Add(1)
	go func() {
		defer p.wg.Done()
		f()
	}()
}

// identifyEvery is how often a machine without a cluster looks whether it has
// become a node.
const identifyEvery = 300 * time.Millisecond

func (p *process) identify(ctx context.Context) (err error) {
	for waited := false; ; waited = true {
		if p.node, err = nodeconf.Load(p.o.NodeConfig); err == nil {
			if p.id, err = pki.Load(p.o.PKI); err == nil {
				return nil
			}
		}
		if !errors.Is(err, errs.NotFound) {
			return err
		}
		if !waited {
			p.log.Info("waiting until this machine is a node of a cluster")
		}
		if err := clock.Sleep(ctx, identifyEvery); err != nil {
			return nil
		}
	}
}

// shutdown closes connections and disks. Disks that hang are left to the
// kernel, which keeps them locked until their last call returns.
func (p *process) shutdown(cancel context.CancelFunc) {
	cancel()
	done := make(chan struct{})
	go func() { p.wg.Wait(); close(done) }()
	select {
	case <-done:
	case <-time.After(3 * time.Second):
		p.log.Warn("a connection or an opening does not end")
	}
	ctx, stop := context.WithTimeout(context.Background(), 2*time.Second)
	defer stop()
	p.mu.Lock()
	disks := slices.Clone(p.disks)
	p.mu.Unlock()
	for _, d := range disks {
		d.stop()
	}
	for _, d := range disks {
		d.wait(ctx)
	}
	p.log.Info("stopped")
}

func listenTCP(ctx context.Context, addr string, log *slog.Logger) (net.Listener, error) {
	for waited := false; ; waited = true {
		ln, err := net.Listen("tcp", addr)
		if err == nil {
			return ln, nil
		}
		if !waited {
			log.Warn("cannot listen yet; trying again", "addr", addr, "err", err)
		}
		if clock.Sleep(ctx, openRetry) != nil {
			return nil, fmt.Errorf("listen: %w", err)
		}
	}
}

// listenUnix listens on a socket that only root may use. It takes the place of
// a predecessor's.
func listenUnix(ctx context.Context, path string) (net.Listener, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, fmt.Errorf("listen: %w", err)
	}
	tmp := path + ".new" // bound under another name: nobody finds it before its mode is right
	for _, f := range []string{tmp} {
		if err := os.Remove(f); err != nil && !errors.Is(err, os.ErrNotExist) {
			return nil, fmt.Errorf("listen: %w", err)
		}
	}
	ln, err := new(net.ListenConfig).Listen(ctx, "unix", tmp)
	if err != nil {
		return nil, fmt.Errorf("listen: %w", err)
	}
	ln.(*net.UnixListener).SetUnlinkOnClose(false)
	if err := errors.Join(os.Chmod(tmp, 0o600), os.Rename(tmp, path)); err != nil {
		return nil, errors.Join(fmt.Errorf("listen on %s: %w", path, err), ln.Close())
	}
	return ln, nil
}

// accept greets guards until the listener is closed.
func (p *process) accept(ctx context.Context, ln net.Listener, fail chan<- error) {
	if err := p.acceptEach(ctx, ln, p.serve); err != nil {
		fail <- fmt.Errorf("accept guards: %w", err)
	}
}

// acceptEach serves connections, each in a goroutine, until the listener fails or
// ctx ends, which is no error.
func (p *process) acceptEach(ctx context.Context, ln net.Listener, serve func(context.Context, net.Conn)) error {
	stop := context.AfterFunc(ctx, func() { ln.Close() })
	defer stop()
	for {
		nc, err := ln.Accept()
		switch {
		case ctx.Err() != nil:
			if err == nil {
				nc.Close()
			}
			return nil
		case err != nil:
			return err
		}
		p.spawn(func() { serve(ctx, nc) })
	}
}

// serve runs one connection: the handshake, then its reader here and its sender
// beside.
func (p *process) serve(ctx context.Context, nc net.Conn) {
	raw := link.NewRaw(nc)
	defer raw.Close()
	stop := context.AfterFunc(ctx, func() { raw.Close() })
	defer stop()
	log := p.log.With("peer", nc.RemoteAddr().String())
	secure, peer, err := handshake(ctx, raw, p.id, p.node.Node)
	if err != nil {
		log.Warn("refuse connection", "err", err)
		return
	}
	var c *conn
	if p.inTurn(ctx, func() {
		p.nextN++
		c = newConn(replica.Conn(p.nextN), secure, raw, p.pool, log.With("node", peer))
		p.conns[c.id] = c
		p.core.ConnOpened(c.id, peer)
	}) != nil {
		return
	}
	p.assist.add(c)
	p.spawn(c.send)
	p.readUntilEnd(c)
	<-c.gone // another reader may have taken over
	p.assist.remove(c)
}

// readUntilEnd reads from c until its end, or until another reader has taken
// over.
func (p *process) readUntilEnd(c *conn) {
	ok, err := p.read(c)
	if !ok {
		return
	}
	c.close()
	if !quiet(err) {
		c.log.Warn("guard's connection ended", "err", err)
	}
	p.push(nil, event{conn: c.id, closed: true})
	close(c.gone)
}

// lastAnswer is how long a connection stays open that is to be closed: its last
// answer says why.
const lastAnswer = 50 * time.Millisecond

func (p *process) event(e replica.Event) {
	switch e.Kind {
	case replica.DiskDied:
		p.diskDied(e.Disk, e.Err)
	case replica.PlacesDone:
		p.placeAsks[e.Token] <- e
		delete(p.placeAsks, e.Token)
	case replica.DropDone:
		if ch := p.drops[e.Token]; ch != nil {
			delete(p.drops, e.Token)
			ch <- e.Status
		}
	case replica.BlockBad, replica.BlockRepaired, replica.MetaRepaired, replica.ScrubEnded:
		p.careEvent(e)
	case replica.Promised:
		p.log.Debug("volume opened", "disk", e.Disk, "vol", e.Volume)
	}
}

func (p *process) device(id ids.ID) *device {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, d := range p.disks {
		if d.id == id {
			return d
		}
	}
	return nil
}

func (p *process) setState(d *device, st model.DiskState, reason string) {
	p.mu.Lock()
	d.state, d.reason = st, reason
	p.mu.Unlock()
}

// settleTime is how long guards are kept waiting for slow disks at the start. A
// running writer puts a disk out that HELLO does not name, as it does with every
// copy whose process is new; at a takeover it is waited for as long as OPEN is
// answered Busy.
const settleTime = 10 * time.Second

// openAll opens the claimed disks side by side, and returns when each is open
// or has failed, or after settleTime.
func (p *process) openAll(ctx context.Context) {
	p.mu.Lock()
	for _, cfg := range p.cfg.Disks {
		p.disks = append(p.disks, newDevice(cfg, p.ended, p.log))
	}
	disks := slices.Clone(p.disks)
	p.mu.Unlock()
	settled := make([]chan struct{}, len(disks))
	for i, d := range disks {
		if p.opening(ctx, d, true) != nil {
			return
		}
		settled[i] = make(chan struct{})
		p.spawn(func() { p.keepOpen(ctx, d, false, sync.OnceFunc(func() { close(settled[i]) })) })
	}
	timeout := time.After(settleTime)
	for _, ch := range settled {
		select {
		case <-ch:
		case <-timeout:
			p.log.Warn("serving although a disk is not open yet")
			return
		case <-ctx.Done():
			return
		}
	}
}

// opening tells the core that d is being opened, or that it cannot be: from then on
// guards hear that this node does not have it.
func (p *process) opening(ctx context.Context, d *device, is bool) error {
	return p.inTurn(ctx, func() { p.core.Opening(d.id, is) })
}

// extraBatchBytes: a second log write at a time pays for large writes only; small
// ones that wait for the first to end share one system call, and their answers
// one wake-up.
const extraBatchBytes = 128 << 10

// open opens the file, recovers the engine and gives it to the core.
func (p *process) open(ctx context.Context, d *device, lost bool) error {
	start := p.o.Clock.Now()
	if why := p.failedBefore(d); why != "" {
		return p.notAgain(d, why)
	}
	f, err := p.openFile(ctx, d)
	if err != nil {
		return err
	}
	if p.isReleased(d.id) {
		return errors.Join(givenBack(d.id), f.Close())
	}
	want := disk.Identity{Cluster: p.node.Cluster, Disk: d.id}
	if err := disk.Recognize(&bounce{f: f, p: p.pool}, f.Size(), want); disk.IsOther(err) {
		return errors.Join(err, f.Close())
	}
	boot, err := p.diskBoot(d, lost)
	if err != nil {
		return errors.Join(err, f.Close())
	}
	// Before anything is written: what guards know of the disk is void from here on.
	cells, err := p.ownCells(d.id)
	if err != nil {
		return errors.Join(err, f.Close())
	}
	core, rec, err := recoverDisk(ctx, f, disk.Options{Pool: p.pool, Cells: cells, ExtraBatchBytes: extraBatchBytes, Expect: want, SeenSession: d.cfg.Session})
	if err == nil {
		err = p.seen(d, rec.Session)
	}
	if err != nil {
		return errors.Join(err, f.Close())
	}
	d.file, d.cells = f, cells
	d.shareDisk()
	d.openRing(p)
	d.log.Info("disk opened", "dur", p.o.Clock.Now().Sub(start), "batches", rec.Batches, "records", rec.Records,
		"dropped_bytes", rec.DroppedBytes, "unverified", rec.Unverified, "damaged", len(rec.DamagedRanges), "superblocks", rec.Superblocks)
	late := false
	err = p.inTurn(ctx, func() {
		if late = p.isReleased(d.id); late {
			return
		}
		d.core = core
		p.core.AddDisk(p.o.Clock.Now(), core, boot)
		p.setState(d, model.DiskActive, "")
		p.resumeScrub(d.id)
		p.kick()
	})
	if late {
		d.stop()
		return givenBack(d.id)
	}
	return err
}

func (p *process) isReleased(id ids.ID) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.released[id]
}

func givenBack(id ids.ID) error {
	return errs.New(errs.Conflict, "open disk %s: it was given back", id)
}

func (p *process) failedBefore(d *device) string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return d.cfg.Failed
}

// kick makes the guards connect again, so that HELLO names the disks as they
// are now. They resume their sessions at once.
func (p *process) kick() {
	for _, c := range p.conns {
		c.close()
	}
}

// diskBoot returns the disk's own boot identity, zero for the node's. A new one
// is drawn, durably, when the disk lost its cache while the node ran on.
func (p *process) diskBoot(d *device, lost bool) (ids.ID, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !lost && (d.cfg.Boot.IsZero() || d.cfg.NodeBoot == p.boot) {
		return d.cfg.Boot, nil
	}
	d.cfg.Boot, d.cfg.NodeBoot = ids.ID{}, ids.ID{}
	if lost {
		d.cfg.Boot, d.cfg.NodeBoot = ids.New(), p.boot
	}
	p.keep(d.cfg)
	return d.cfg.Boot, p.cfg.save(p.o.Config)
}

// seen notes the session that begins, which is durable on the disk: a copy of it
// from before is refused from now on.
func (p *process) seen(d *device, session uint64) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	d.cfg.Session = session
	p.keep(d.cfg)
	return p.cfg.save(p.o.Config)
}

// keep puts cfg in the place of the entry of the same disk, unless that was given back.
// mu is held.
func (p *process) keep(cfg diskConfig) {
	if p.released[cfg.ID] {
		return
	}
	for i := range p.cfg.Disks {
		if p.cfg.Disks[i].ID == cfg.ID {
			p.cfg.Disks[i] = cfg
			return
		}
	}
	p.cfg.Disks = append(p.cfg.Disks, cfg)
}

// diskDied runs in the turn. The disk is closed; if it was taken away it is
// looked for again, if it is sick it waits for an operator.
func (p *process) diskDied(id ids.ID, cause error) {
	d := p.device(id)
	if d == nil {
		return
	}
	st := model.DiskFailed
	if gone(cause) {
		st = model.DiskMissing
	}
	p.setState(d, st, cause.Error())
	d.log.Error("disk died", "state", st, "err", cause)
	d.stop()
	if st == model.DiskMissing {
		p.revive(d)
		return
	}
	p.spawn(func() { p.condemn(d, cause) }) // no I/O in the turn
}

// condemn notes durably that d failed: it may not have taken the mark itself.
func (p *process) condemn(d *device, cause error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !slices.Contains(p.disks, d) {
		return // released
	}
	d.cfg.Failed = cause.Error()
	p.keep(d.cfg)
	if err := p.cfg.save(p.o.Config); err != nil {
		d.log.Error("note that the disk failed", "err", err)
	}
}

// revive opens a disk that died again: with new workers, the old ones may hang.
func (p *process) revive(old *device) {
	p.mu.Lock()
	defer p.mu.Unlock()
	d := newDevice(old.cfg, p.ended, p.log)
	d.state, d.reason = old.state, old.reason
	for i := range p.disks {
		if p.disks[i] == old {
			p.disks[i] = d
		}
	}
	p.reopen(d)
}
