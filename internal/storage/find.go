package storage

import (
	"context"
	"errors"
	"slices"
	"time"

	"roseau/internal/base/clock"
	"roseau/internal/base/errs"
	"roseau/internal/block/disk"
	"roseau/internal/driver/blockdev"
	"roseau/internal/model"
)

// A claimed disk is known by what its superblock says, not by its path: the kernel
// names devices in the order in which it finds them, and disks change their bays. The
// path is where it was last.

// reopenEvery is how often a disk that is missing is tried at its path.
const reopenEvery = time.Second

// findEvery is how often a disk is looked for that is not at its path; at first
// quickFinds times at once, for disks of this node that changed places make room for
// each other.
const (
	findEvery  = 5 * time.Second
	quickFinds = 3
)

// keepOpen opens d, as soon as it is there. lost: it was open before and lost
// what it had not flushed.
func (p *process) keepOpen(ctx context.Context, d *device, lost bool, settled func()) {
	defer settled()
	told, found := "", clock.Instant(0)
	for try := 0; ; try++ {
		if p.isReleased(d.id) {
			_ = p.opening(ctx, d, false) // it fails at the end of the process only
			return
		}
		err := p.open(ctx, d, lost)
		if now := p.o.Clock.Now(); disk.IsOther(err) || gone(err) && (found == 0 || now >= found.Add(p.o.FindEvery)) {
			if found = now; p.find(ctx, d) {
				err = p.open(ctx, d, lost)
			}
		}
		if err == nil || ctx.Err() != nil || p.device(d.id) != d {
			return
		}
		away := disk.IsOther(err)
		p.setAway(d, away)
		again := reopenEvery
		switch {
		case away && try < quickFinds:
			if clock.Sleep(ctx, openRetry) != nil {
				return
			}
			continue
		case away:
			again, lost = p.o.FindEvery, true
		case gone(err):
			lost = true // away from a machine that runs: its cache had no power
		}
		if p.cannotOpen(ctx, d, err, err.Error() != told) != nil {
			return
		}
		told = err.Error()
		settled()
		if !away && !gone(err) {
			return // until somebody asks for a retry
		}
		if clock.Sleep(ctx, again) != nil {
			return
		}
	}
}

// cannotOpen notes why a disk is not open, and that this node does not have it. news:
// the log has not said so yet.
func (p *process) cannotOpen(ctx context.Context, d *device, err error, news bool) error {
	st := model.DiskFailed
	if gone(err) {
		st = model.DiskMissing
	}
	reason := err.Error()
	if hint := errs.Hint(err); hint != "" {
		reason += "; " + hint
	}
	p.setState(d, st, reason)
	if news {
		d.log.Error("disk cannot be used", "state", st, "err", err)
	}
	return p.opening(ctx, d, false)
}

// find looks for d among the disks of the machine that nobody uses, and makes the
// path where it stands its own. It writes to no disk.
func (p *process) find(ctx context.Context, d *device) bool {
	list, err := p.found()
	if err != nil {
		d.log.Warn("look for the disk", "err", err)
		return false
	}
	want := disk.Identity{Cluster: p.node.Cluster, Disk: d.id}
	for _, f := range list {
		if ctx.Err() != nil {
			return false
		}
		if p.servedAt(f.Path) != nil || !slices.ContainsFunc(f.Signatures, func(s blockdev.Signature) bool { return s.Kind == "roseau" }) {
			continue
		}
		file, err := p.o.Open(f.Path)
		if err != nil {
			continue // in use: another disk of ours is just being opened there
		}
		err = errors.Join(disk.Recognize(&bounce{f: file, p: p.pool}, file.Size(), want), file.Close())
		if err != nil {
			continue
		}
		if err := p.moved(d, f.Path); err != nil {
			d.log.Error("note where the disk is", "at", f.Path, "err", err)
			return false
		}
		d.log.Info("disk found at another path", "at", f.Path)
		return true
	}
	return false
}

// moved notes the path of d, durably.
func (p *process) moved(d *device, path string) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	was := d.cfg
	d.cfg.Path, d.away = path, false
	p.keep(d.cfg)
	if err := p.cfg.save(p.o.Config); err != nil {
		d.cfg = was
		p.keep(was)
		return err
	}
	return nil
}

func (p *process) setAway(d *device, away bool) {
	p.mu.Lock()
	d.away = away
	p.mu.Unlock()
}

// servedAt returns the disk that serves from path, or nil.
func (p *process) servedAt(path string) *device {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, o := range p.disks {
		if o.state == model.DiskActive && realPath(o.cfg.Path) == realPath(path) {
			return o
		}
	}
	return nil
}

// pathOf returns the path of d; an error as of a wrong disk if another one serves
// from there.
func (p *process) pathOf(d *device) (string, error) {
	p.mu.Lock()
	path := d.cfg.Path
	p.mu.Unlock()
	if o := p.servedAt(path); o != nil && o != d {
		return "", disk.Other(errs.New(errs.Conflict, "open disk: at %s is disk %s, not %s", path, o.id, d.id).
			WithHint("connect the claimed one again, at any path of this node"))
	}
	return path, nil
}

func (p *process) stateOf(d *device) model.DiskState {
	p.mu.Lock()
	defer p.mu.Unlock()
	return d.state
}

// notAgain says why a disk that failed is not opened; as of any disk, whether it is
// still at its path.
func (p *process) notAgain(d *device, why string) error {
	path, err := p.pathOf(d)
	if err != nil {
		return err
	}
	f, err := p.o.Open(path)
	if errors.Is(err, errs.Conflict) {
		return disk.Other(err) // a failed disk is nobody's
	}
	if err != nil {
		return err
	}
	err = errors.Join(disk.Recognize(&bounce{f: f, p: p.pool}, f.Size(), disk.Identity{Cluster: p.node.Cluster, Disk: d.id}), f.Close())
	if disk.IsOther(err) {
		return err
	}
	return errs.New(errs.Unavailable, "open disk %s: it failed a write or an fdatasync before: %s", d.id, why).
		WithHint("its content cannot be trusted; to use the device again wipe and claim it, then `roseau disk replace` the old disk by the new")
}
