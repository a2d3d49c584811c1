package guard

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"time"

	"roseau/internal/base/clock"
	"roseau/internal/base/errs"
	"roseau/internal/base/ids"
	"roseau/internal/base/paths"
	"roseau/internal/block/volume"
	"roseau/internal/core/repl"
	"roseau/internal/core/vmguard"
	"roseau/internal/driver/guardctl"
	"roseau/internal/model"
)

// directory is the volume.Directory of a config.
type directory []guardctl.Peer

// StorageAddrs lists the storage network's addresses first, each once.
func (d directory) StorageAddrs(node ids.ID) []string {
	var out []string
	seen := map[string]bool{}
	for _, p := range d {
		if p.ID != node {
			continue
		}
		for _, role := range []model.NetworkRole{model.RoleStorage, model.RoleCluster} {
			for _, ip := range p.Addresses[role] {
				if !seen[ip] {
					seen[ip] = true
					out = append(out, net.JoinHostPort(ip, strconv.Itoa(paths.PortStorage)))
				}
			}
		}
	}
	return out
}

// openVolumes opens the set, again and again until it can be, and serves each
// disk on its socket.
func (g *guard) openVolumes(ctx context.Context, run ids.ID) {
	g.closeVolumes()
	before := g.volDone
	set, end := context.WithCancel(ctx)
	g.volCtx, g.volEnd = set, end
	g.volGen++
	gen := g.volGen
	cfg := volume.Config{Cluster: g.cfg.Cluster, Generation: g.cfg.Generation, Node: g.cfg.Node, Guard: g.instance, Run: run,
		Purpose: repl.PurposeVM, VM: g.cfg.VM, Attempt: g.cfg.Attempt, Volumes: g.cfg.Volumes(), Cache: g.files.cache(),
		GuestAlive: g.proc != nil || g.core.Migration() != "",
		Etcd:       g.etcd, Identity: g.identity, Nodes: directory(g.cfg.Nodes), Clock: g.clock, Log: g.log,
		OnLease: func(l volume.Lease) { g.leased(gen, l) }}
	g.async(func() {
		<-before
		for set.Err() == nil {
			h, err := g.open(set, cfg)
			if err == nil {
				err = g.serveDisks(set, h)
			}
			if err == nil {
				g.inLoop(func() { g.opened(set, h) })
				return
			}
			if h != nil {
				h.Close()
			}
			g.post(vmguard.VolumesOpened{Err: err})
			clock.Sleep(set, 500*time.Millisecond)
		}
	})
}

func (g *guard) opened(set context.Context, h volume.Handle) {
	if set.Err() != nil {
		g.async(func() { h.Close() })
		return
	}
	g.setVolumes(h)
	g.async(func() { g.volumeEvents(set, h) })
	g.step(vmguard.VolumesOpened{})
}

func (g *guard) setVolumes(h volume.Handle) {
	g.vols = h
	g.mu.Lock()
	g.readVols = h
	g.mu.Unlock()
}

// serveDisks listens where QEMU's block devices connect to.
func (g *guard) serveDisks(set context.Context, h volume.Handle) error {
	for i, d := range g.cfg.Disks {
		path := g.files.nbd(i)
		g.files.remove(path)
		l, err := net.Listen("unix", path)
		if err != nil {
			return err
		}
		ownIfRoot(path, g.user)
		if err := os.Chmod(path, 0o600); err != nil {
			return errors.Join(err, l.Close())
		}
		// Close must not take away the socket of a successor set.
		l.(*net.UnixListener).SetUnlinkOnClose(false)
		g.async(func() {
			if err := h.Serve(set, d.Volume, l); err != nil && set.Err() == nil {
				// QEMU would ask in vain for ever.
				g.exit(brokenError{fmt.Errorf("serve volume %s to vm %s: %w", d.Volume, g.cfg.VM, err)})
			}
		})
	}
	return nil
}

// closeVolumes drops the set without release.
func (g *guard) closeVolumes() {
	if g.volEnd == nil {
		return
	}
	g.volEnd()
	g.volEnd = nil
	g.volGen++
	h, done := g.vols, make(chan struct{})
	g.setVolumes(nil)
	g.volDone = done
	g.async(func() {
		defer close(done)
		if h != nil {
			h.Close()
		}
	})
}

// volumeEvents turns what the set reports into events of the core and of the
// timeline.
func (g *guard) volumeEvents(set context.Context, h volume.Handle) {
	for {
		select {
		case <-set.Done():
			return
		case e, ok := <-h.Events():
			if !ok {
				return
			}
			g.inLoop(func() {
				if set.Err() == nil {
					g.volumeEvent(set, e)
				}
			})
		}
	}
}

// spaceWaits notes which volumes wait for space; the guest is paused while one
// does. It runs in the loop.
func (g *guard) spaceWaits(vol ids.ID, on bool) {
	if on {
		g.noSpace[vol] = true
	} else {
		delete(g.noSpace, vol)
	}
	g.step(vmguard.SpaceWaits{On: len(g.noSpace) > 0})
}

func (g *guard) volumeEvent(ctx context.Context, e volume.Event) {
	level := "info"
	switch e.Kind {
	case volume.EventFenced:
		g.report("warn", e.Text)
		g.step(vmguard.Fenced{Node: e.By.Node, Run: e.By.Run})
		return
	case volume.EventGuestInvalid:
		g.step(vmguard.GuestInvalid{})
		return
	case volume.EventTaken, volume.EventLeaseLost, volume.EventLeaseBack:
		return // told by the core, in its own words
	case volume.EventAskMove:
		g.mu.Lock()
		g.wantsMove = e.Text
		g.mu.Unlock()
		level = "warn"
	case volume.EventMoveOver:
		g.mu.Lock()
		g.wantsMove = ""
		g.mu.Unlock()
	case volume.EventExhausted:
		g.report("error", e.Text)
		g.exit(brokenError{errs.New(errs.Exhausted, "keep vm %s: %s", g.cfg.VM, e.Text)})
		return
	case volume.EventNoSpace, volume.EventSpaceBack:
		g.spaceWaits(e.Volume, e.Kind == volume.EventNoSpace)
		return
	case volume.EventStalled, volume.EventWaiting:
		level = "warn"
	case volume.EventForgotten, volume.EventDamaged, volume.EventBug, volume.EventDiffer:
		level = "error"
	}
	if e.Text != "" {
		g.reportCopy(level, e.Text, e.Disk)
	}
}
