package storage

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"roseau/internal/base/errs"
	"roseau/internal/base/ids"
	"roseau/internal/base/size"
	"roseau/internal/block/disk"
	"roseau/internal/block/wire"
	"roseau/internal/driver/blockdev"
	"roseau/internal/driver/ctlsock"
	"roseau/internal/driver/storagectl"
	"roseau/internal/model"
)

// control is the REST of the node's daemon.
func (p *process) control() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /devices", func(w http.ResponseWriter, r *http.Request) {
		list, err := p.devices(r.Context())
		ctlsock.Reply(w, list, err)
	})
	mux.HandleFunc("GET /status", func(w http.ResponseWriter, r *http.Request) {
		s, err := p.status(r.Context())
		ctlsock.Reply(w, s, err)
	})
	mux.HandleFunc("GET /care", func(w http.ResponseWriter, r *http.Request) {
		list, err := p.careOf(r.Context())
		ctlsock.Reply(w, list, err)
	})
	post(mux, "/scrub", func(ctx context.Context, r storagectl.ScrubRequest) (any, error) { return nil, p.scrub(ctx, r) })
	post(mux, "/claim", p.claim)
	post(mux, "/wipe", func(ctx context.Context, r storagectl.WipeRequest) (any, error) { return nil, p.wipe(ctx, r) })
	post(mux, "/release", func(ctx context.Context, r storagectl.DiskRequest) (any, error) { return nil, p.release(ctx, r.Disk) })
	post(mux, "/retry", func(ctx context.Context, r storagectl.DiskRequest) (any, error) { return nil, p.retry(r.Disk) })
	post(mux, "/delete-volume", func(ctx context.Context, r storagectl.DeleteRequest) (any, error) { return nil, p.deleteVolume(ctx, r) })
	post(mux, "/limits", func(ctx context.Context, r storagectl.LimitsRequest) (any, error) { return nil, p.setLimits(ctx, r) })
	mux.HandleFunc("GET /copies", func(w http.ResponseWriter, r *http.Request) {
		list, err := p.copies(r.Context())
		ctlsock.Reply(w, list, err)
	})
	post(mux, "/drop-stray", func(ctx context.Context, r storagectl.Copy) (any, error) { return nil, p.dropStray(ctx, r) })
	return mux
}

func post[Q, A any](mux *http.ServeMux, path string, f func(context.Context, Q) (A, error)) {
	mux.HandleFunc("POST "+path, func(w http.ResponseWriter, r *http.Request) {
		var q Q
		if err := ctlsock.Decode(w, r, strings.TrimPrefix(path, "/"), &q); err != nil {
			ctlsock.Refuse(w, err)
			return
		}
		a, err := f(r.Context(), q)
		ctlsock.Reply(w, a, err)
	})
}

func (p *process) serveControl(srv *http.Server, ln net.Listener, fail chan<- error) {
	if err := srv.Serve(ln); err != nil && !errors.Is(err, http.ErrServerClosed) {
		fail <- fmt.Errorf("serve control: %w", err)
	}
}

// describeLocked describes d as a Device. The process's mu is held.
func (d *device) describeLocked() storagectl.Device {
	out := storagectl.Device{Path: d.cfg.Path, ID: d.id, State: d.state, Reason: d.reason}
	if d.file != nil {
		out.Size = size.Bytes(d.file.Size())
	}
	return out
}

func (p *process) status(ctx context.Context) (storagectl.Status, error) {
	s := storagectl.Status{Node: p.node.Node, Session: p.session, Boot: p.boot, Pool: size.Bytes(p.pool.used.Load())}
	err := p.inTurn(ctx, func() {
		s.Guards = len(p.conns)
		now := p.o.Clock.Now()
		p.mu.Lock()
		defer p.mu.Unlock()
		for _, d := range p.disks {
			ds := storagectl.DiskStatus{Device: d.describeLocked()}
			if d.core != nil {
				d.fill(&ds, d.core.Stats())
				ds.ProbeAgeMS = p.core.ProbeAge(now, d.id).Milliseconds()
				ds.Open = p.core.HandleCount(d.id)
			}
			s.Disks = append(s.Disks, ds)
		}
	})
	return s, err
}

func (d *device) fill(ds *storagectl.DiskStatus, st disk.Stats) {
	ds.Data, ds.Used = size.Bytes(int64(st.Slots)*st.SlotBytes), size.Bytes(st.UsedBytes)
	ds.Errors = int64(st.UnreadableBlocks)
	ds.Volumes, ds.Slots, ds.FreeSlots = st.Volumes, st.Slots, st.FreeSlots
	ds.Batches, ds.Syncs = st.Batches, st.Syncs
	if st.RingBytes > 0 {
		ds.RingUsed = float64(st.RingUsedBytes) / float64(st.RingBytes)
	}
}

// devices lists the claimed disks, and every other disk of the machine.
func (p *process) devices(ctx context.Context) ([]storagectl.Device, error) {
	s, err := p.status(ctx)
	if err != nil {
		return nil, err
	}
	found, err := p.found()
	if err != nil {
		return nil, err
	}
	list := []storagectl.Device{}
	claimed := map[string]bool{}
	for _, d := range s.Disks {
		own := p.byPath(d.Path)
		here := own != nil && own.id == d.ID // else something else is there
		claimed[realPath(d.Path)] = claimed[realPath(d.Path)] || here
		for _, f := range found {
			if here && realPath(f.Path) == realPath(d.Path) {
				d.Model, d.Serial, d.Size = f.Model, f.Serial, max(d.Size, size.Bytes(f.SizeBytes))
			}
		}
		list = append(list, d.Device)
	}
	for _, f := range found {
		if claimed[realPath(f.Path)] {
			continue
		}
		d := storagectl.Device{Path: f.Path, Model: f.Model, Serial: f.Serial, Size: size.Bytes(f.SizeBytes), State: model.DiskFree, Found: &f}
		if !f.Blank() {
			d.State, d.Content = model.DiskInUse, strings.Join(f.Uses(), "; ")
		}
		list = append(list, d)
	}
	return list, nil
}

func realPath(p string) string {
	if r, err := filepath.EvalSymlinks(p); err == nil {
		return r
	}
	return p
}

// found lists the disks that exist. A lab node sees the devices of its host in
// /sys, which are not its own: there only the lab's disk files count.
func (p *process) found() ([]blockdev.Device, error) {
	if !p.o.Lab {
		return p.o.Host.List()
	}
	files, err := filepath.Glob(filepath.Join(p.o.LabDisks, "*"))
	if err != nil {
		return nil, err
	}
	var list []blockdev.Device
	for _, f := range files {
		if st, err := os.Stat(f); err != nil || !st.Mode().IsRegular() {
			continue
		}
		d, err := p.look(f)
		if err != nil {
			d = blockdev.Device{Path: f, File: true, Error: err.Error()}
		}
		list = append(list, d)
	}
	return list, nil
}

// look describes the disk at path as its opener sees it: what a lab's disk holds
// is in its fault layer, too.
func (p *process) look(path string) (blockdev.Device, error) {
	d, err := p.o.Host.Describe(path)
	if err != nil || d.InUse() || p.isClaimed(path) {
		return d, err
	}
	f, err := p.o.Open(path)
	if err != nil {
		if errors.Is(err, errs.Conflict) {
			d.Open = true
			return d, nil
		}
		return d, err
	}
	defer f.Close()
	if d.Signatures, err = blockdev.Identify(f, f.Size()); err != nil {
		return d, err
	}
	d.SizeBytes = f.Size()
	return d, nil
}

func (p *process) isClaimed(path string) bool { return p.byPath(path) != nil }

func (p *process) byPath(path string) *device {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.byPathLocked(path)
}

// byPathLocked returns the claimed disk that stands at path, as far as is known.
func (p *process) byPathLocked(path string) *device {
	for _, d := range p.disks {
		if !d.away && realPath(d.cfg.Path) == realPath(path) {
			return d
		}
	}
	return nil
}

// minDiskBytes is the smallest disk that makes sense.
const minDiskBytes = 64 << 20

// claim formats a blank disk and opens it. A disk that is claimed already is
// returned as it is, so that a caller who lost the answer may ask again.
func (p *process) claim(ctx context.Context, r storagectl.ClaimRequest) (any, error) {
	if !filepath.IsAbs(r.Path) {
		return nil, errs.New(errs.Invalid, "claim disk %q: want an absolute path", r.Path)
	}
	p.claims.Lock()
	defer p.claims.Unlock()
	p.mu.Lock()
	if d := p.byPathLocked(r.Path); d != nil {
		defer p.mu.Unlock()
		return d.describeLocked(), nil
	}
	p.mu.Unlock()
	made, err := p.makeFile(r)
	if err != nil {
		return nil, err
	}
	cfg, err := p.format(r)
	if err != nil {
		if made {
			err = errors.Join(err, os.Remove(r.Path)) // nothing half-made stays
		}
		return nil, err
	}
	d := newDevice(cfg, p.ended, p.log)
	p.mu.Lock()
	p.keep(cfg)
	err = p.cfg.save(p.o.Config)
	if err == nil {
		p.disks = append(p.disks, d)
	} else {
		p.cfg.Disks = slices.DeleteFunc(p.cfg.Disks, func(x diskConfig) bool { return x.ID == cfg.ID })
	}
	p.mu.Unlock()
	if err != nil {
		return nil, err
	}
	if err := p.open(ctx, d, false); err != nil {
		p.setState(d, model.DiskFailed, err.Error())
		return nil, fmt.Errorf("claim disk %s: %w", r.Path, err)
	}
	p.log.Info("disk claimed", "disk", cfg.ID, "path", cfg.Path)
	s, err := p.status(ctx)
	for _, ds := range s.Disks {
		if ds.ID == cfg.ID {
			return ds.Device, nil
		}
	}
	return nil, err
}

// makeFile makes a file of the size asked for, if there is none.
func (p *process) makeFile(r storagectl.ClaimRequest) (made bool, err error) {
	if _, err := os.Stat(r.Path); !errors.Is(err, os.ErrNotExist) || r.SizeBytes == 0 {
		return false, nil
	}
	if r.SizeBytes < minDiskBytes {
		return false, tooSmall(r.Path, r.SizeBytes)
	}
	return true, blockdev.Create(r.Path, r.SizeBytes/blockdev.Align*blockdev.Align)
}

func tooSmall(path string, n int64) error {
	return errs.New(errs.Invalid, "claim disk %s: %s is too small", path, size.Bytes(n)).
		WithHint("a disk needs at least %s", size.Bytes(minDiskBytes))
}

// format checks that the disk is free, and makes it ours.
func (p *process) format(r storagectl.ClaimRequest) (diskConfig, error) {
	found, err := p.look(r.Path)
	if err != nil {
		return diskConfig{}, fmt.Errorf("claim disk %s: %w", r.Path, err)
	}
	if err := refuse(&found, r.WipeName); err != nil {
		return diskConfig{}, err
	}
	if found.SizeBytes < minDiskBytes {
		return diskConfig{}, tooSmall(r.Path, found.SizeBytes)
	}
	f, err := p.o.Open(r.Path)
	if err != nil {
		return diskConfig{}, fmt.Errorf("claim disk %s: %w", r.Path, err)
	}
	cfg := diskConfig{ID: ids.New(), Path: r.Path}
	err = blockdev.Erase(f)
	if err == nil {
		err = formatDisk(f, disk.Identity{Cluster: p.node.Cluster, Disk: cfg.ID}, r.WALBytes, p.o.Clock.Wall())
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return diskConfig{}, fmt.Errorf("claim disk %s: %w", r.Path, err)
	}
	return cfg, nil
}

// refuse says why a disk may not be overwritten. wipeName is its path again if
// the caller wants that in spite of what is on it.
func refuse(d *blockdev.Device, wipeName string) error {
	uses := strings.Join(d.Uses(), "; ")
	switch {
	case d.Blank():
		return nil
	case d.InUse() || d.Error != "":
		return errs.New(errs.Conflict, "claim disk %s: it is in use: %s", d.Path, uses).
			WithHint("unmount it, or take it out of its volume group or array, and see that it is none that this machine needs")
	case wipeName == "":
		return errs.New(errs.Conflict, "claim disk %s: it is not blank: %s", d.Path, uses).
			WithHint("if nobody needs what is on it: `roseau disk wipe` destroys it")
	case wipeName != d.Path:
		return errs.New(errs.Invalid, "claim disk %s: the name to confirm wiping is %q", d.Path, wipeName)
	}
	return nil
}

// wipe makes a disk blank that is not in use, and not claimed, or failed.
func (p *process) wipe(_ context.Context, r storagectl.WipeRequest) error {
	if r.Path == "" || r.Confirm != r.Path {
		return errs.New(errs.Invalid, "wipe disk %q: the name to confirm is %q", r.Path, r.Confirm).
			WithHint("give the path of the disk twice")
	}
	p.claims.Lock()
	defer p.claims.Unlock()
	own := p.byPath(r.Path)
	if own != nil && p.stateOf(own) != model.DiskFailed {
		return errs.New(errs.Conflict, "wipe disk %s: it is claimed and may hold copies of volumes", r.Path).
			WithHint("`roseau disk retire` empties it, `roseau disk remove` gives it back")
	}
	found, err := p.look(r.Path)
	if err != nil {
		return fmt.Errorf("wipe disk %s: %w", r.Path, err)
	}
	if found.InUse() || len(found.Partitions) > 0 && !found.File && len(found.Holders) > 0 {
		return errs.New(errs.Conflict, "wipe disk %s: it is in use: %s", r.Path, strings.Join(found.Uses(), "; ")).
			WithHint("unmount it, or take it out of its volume group or array first")
	}
	f, err := p.o.Open(r.Path)
	if err != nil {
		return fmt.Errorf("wipe disk %s: %w", r.Path, err)
	}
	id, err := disk.Identify(&bounce{f: f, p: p.pool}, f.Size())
	if err == nil && id.Cluster == p.node.Cluster && slices.Contains(r.Keep, id.Disk) {
		err = errs.New(errs.Conflict, "wipe disk %s: it is disk %s of this cluster, which stands in the wrong place", r.Path, id.Disk).
			WithHint("connect it at its node again; `roseau disk remove` gives a disk up whose copies are elsewhere")
		return errors.Join(err, f.Close())
	}
	if err := errors.Join(blockdev.Erase(f), f.Close()); err != nil {
		return fmt.Errorf("wipe disk %s: %w", r.Path, err)
	}
	if own != nil { // it is no more; what stands here is blank
		p.setAway(own, true)
	}
	p.log.Warn("disk wiped", "path", r.Path, "held", strings.Join(found.Uses(), "; "))
	return nil
}

// release gives a disk back: it leaves the configuration durably, then its
// guards, then its content.
func (p *process) release(ctx context.Context, id ids.ID) error {
	p.claims.Lock()
	defer p.claims.Unlock()
	d := p.device(id)
	if d == nil {
		return nil // released already
	}
	p.mu.Lock()
	was := slices.Clone(p.cfg.Disks)
	p.cfg.Disks = slices.DeleteFunc(p.cfg.Disks, func(x diskConfig) bool { return x.ID == id })
	if err := p.cfg.save(p.o.Config); err != nil {
		p.cfg.Disks = was
		p.mu.Unlock()
		return err
	}
	p.released[id] = true
	p.mu.Unlock()
	state, served := model.DiskMissing, false
	if err := p.inTurn(ctx, func() {
		p.core.RemoveDisk(id)
		delete(p.care.Disks, id)
		p.care.dirty = true
		d = p.device(id) // it may have been replaced by one that is opened again
		p.mu.Lock()
		state, served = d.state, d.core != nil
		p.disks = slices.DeleteFunc(p.disks, func(x *device) bool { return x == d })
		p.mu.Unlock()
		d.core = nil
		p.kick()
	}); err != nil {
		return err
	}
	if served {
		d.stop()
		d.wait(ctx)
	} else {
		d.closeWorkers() // whoever is opening it sees that it is given back, and closes it
	}
	p.log.Info("disk released", "disk", id, "path", d.cfg.Path)
	if state != model.DiskActive {
		return nil // it cannot be wiped
	}
	f, err := p.o.Open(d.cfg.Path)
	if err != nil {
		p.log.Warn("disk is released but not wiped", "path", d.cfg.Path, "err", err)
		return nil
	}
	return errors.Join(blockdev.Erase(f), f.Close())
}

// retry opens a disk that failed again.
func (p *process) retry(id ids.ID) error {
	d := p.device(id)
	if d == nil {
		return errs.New(errs.NotFound, "retry disk %s: not claimed by this node", id)
	}
	if state := p.stateOf(d); state != model.DiskFailed {
		return errs.New(errs.Conflict, "retry disk %s: it is %s", id, state)
	}
	p.setState(d, model.DiskMissing, "being opened again")
	p.revive(d)
	return nil
}

// tombstone is what is read of a deletion's record: enough to see that it is
// one, and that it names the disks [I14].
type tombstone struct {
	Disks   []ids.ID  `json:"disks"`
	Deleted time.Time `json:"deleted"`
}

// setLimits tells the disks how much of them is for guests.
func (p *process) setLimits(ctx context.Context, r storagectl.LimitsRequest) error {
	for id, n := range r.Bytes {
		if n < 0 {
			return errs.New(errs.Invalid, "limit disk %s: %d bytes, want 0 or more", id, n)
		}
	}
	return p.inTurn(ctx, func() {
		p.mu.Lock()
		disks := slices.Clone(p.disks)
		p.mu.Unlock()
		for _, d := range disks {
			if n, ok := r.Bytes[d.id]; ok && d.core != nil {
				d.core.SetLimit(max(1, int(n/d.core.Stats().SlotBytes)))
			}
		}
	})
}

// deleteVolume frees what the disks hold of a volume. Without the positive
// record of its deletion nothing is freed: a missing key proves nothing.
func (p *process) deleteVolume(ctx context.Context, r storagectl.DeleteRequest) error {
	var t tombstone
	if err := json.Unmarshal(r.Record, &t); err != nil || r.Volume.IsZero() || t.Deleted.IsZero() {
		return errs.New(errs.Invalid, "delete volume %s: no record of its deletion", r.Volume)
	}
	for _, id := range r.Disks {
		if !slices.Contains(t.Disks, id) {
			return errs.New(errs.Invalid, "delete volume %s: the record of its deletion does not name disk %s", r.Volume, id)
		}
	}
	for _, id := range r.Disks {
		err := p.drop(ctx, func(token uint64) { p.core.Drop(p.o.Clock.Now(), token, id, r.Volume) })
		if err != nil {
			return fmt.Errorf("delete volume %s on disk %s: %w", r.Volume, id, err)
		}
	}
	return nil
}

// drop starts a drop in the loop and waits for its end.
func (p *process) drop(ctx context.Context, start func(token uint64)) error {
	ch := make(chan wire.Status, 1)
	err := p.inTurn(ctx, func() {
		p.nextN++
		p.drops[p.nextN] = ch
		start(p.nextN)
	})
	if err != nil {
		return err
	}
	select {
	case st := <-ch:
		if st != wire.OK {
			return errs.New(errs.Unavailable, "status %d", st)
		}
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
