package drill

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"roseau/internal/base/errs"
	"roseau/internal/base/size"
	"roseau/internal/drill/probe"
	"roseau/internal/model"
)

// fillChunks of random data stand on the probe's disk before one is pulled.
const fillChunks = 512

var diskFailure = Test{
	Name:    "disk-failure",
	Summary: "pull a disk that holds a copy of the VM's volume, under load",
	Method:  fmt.Sprintf("%d MiB of random data and flushed writes; the disk is pulled, the volume must degrade, be rebuilt to 3 copies elsewhere, and read back whole", fillChunks),
	run:     runDiskFailure,
}

func runDiskFailure(ctx context.Context, e *Env) error {
	disk := size.Bytes(probe.FillOffset + fillChunks*probe.FillChunkBytes)
	return e.withProbe(ctx, disk, func(ctx context.Context, p *probeVM) (err error) {
		e.say("writing %d MiB of random data in the guest", fillChunks)
		if _, err := p.fill(ctx, fillChunks, false, 5*time.Minute); err != nil {
			return err
		}
		if err := p.startLoad(ctx, 2*time.Millisecond); err != nil {
			return err
		}
		if err := p.post(ctx, "/reset"); err != nil {
			return err
		}
		vm, err := p.vmNode(ctx)
		if err != nil {
			return err
		}
		volume := vm.Spec.Disks[0].Volume
		victim, nodeName, err := chooseDisk(ctx, e, volume)
		if err != nil {
			return err
		}
		e.say("pulling disk %s of %s, which holds a copy of %s", victim.Spec.Path, nodeName, volume)
		p.acks.watch()
		pulled, err := e.Faults.PullDisk(ctx, nodeName, victim.Spec.Path)
		if err != nil {
			return err
		}
		defer func() {
			back, cancel := context.WithTimeout(context.WithoutCancel(ctx), 3*time.Minute)
			defer cancel()
			err = errors.Join(err, returnDisk(back, e, victim, nodeName))
		}()
		e.report.Figures["disk"] = nodeName + ":" + victim.Spec.Path
		return watchRebuild(ctx, e, p, volume, pulled)
	})
}

// chooseDisk picks a disk with a copy of the volume, on a node that has another
// disk to rebuild onto.
func chooseDisk(ctx context.Context, e *Env, volume string) (model.Disk, string, error) {
	placed, err := e.Cluster.VolumeDisks(ctx, volume)
	if err != nil {
		return model.Disk{}, "", err
	}
	disks, err := e.Cluster.Disks(ctx)
	if err != nil {
		return model.Disk{}, "", err
	}
	nodes, err := e.Cluster.Nodes(ctx)
	if err != nil {
		return model.Disk{}, "", err
	}
	spare := map[string]int{}
	for _, d := range disks {
		if d.Status.State == model.DiskActive {
			spare[d.Spec.Node.String()]++
		}
	}
	for _, d := range disks {
		if !slices.Contains(placed, d.ID.String()) || spare[d.Spec.Node.String()] < 2 {
			continue
		}
		for _, n := range nodes {
			if n.ID == d.Spec.Node {
				return d, n.Name, nil
			}
		}
	}
	return model.Disk{}, "", errs.New(errs.Unavailable, "choose a disk to pull: no disk with a copy of %s is on a node with another disk to rebuild onto", volume)
}

func watchRebuild(ctx context.Context, e *Env, p *probeVM, volume string, pulled time.Time) error {
	degraded := false
	var rebuilt, total size.Bytes
	var copies Series
	copies.Name = "copies in sync"
	lastSaid := time.Now()
	err := waitUntil(ctx, 10*time.Minute, 20*time.Millisecond, "the volume to have three copies again", func() (bool, error) {
		v, err := e.Cluster.Volume(ctx, volume)
		if err != nil {
			return false, err
		}
		rebuilt, total = max(rebuilt, v.Status.SyncDone), max(total, v.Status.SyncTotal)
		if n := len(copies.Y); n == 0 || copies.Y[n-1] != float64(v.Status.Copies) {
			copies.X, copies.Y = append(copies.X, time.Since(pulled).Seconds()), append(copies.Y, float64(v.Status.Copies))
		}
		if v.Status.Health != model.Healthy && !degraded {
			degraded = true
			e.say("volume %s is %s: %d copies", volume, v.Status.Health, v.Status.Copies)
		}
		if time.Since(lastSaid) > 5*time.Second && v.Status.SyncTotal > 0 {
			lastSaid = time.Now()
			e.say("rebuilding: %s of %s", v.Status.SyncDone, v.Status.SyncTotal)
		}
		return degraded && v.Status.Health == model.Healthy, nil
	})
	f := e.report.Figures
	f["degraded_seen"], f["rebuild_ms"], f["rebuilt_bytes"] = degraded, ms(time.Since(pulled)), max(rebuilt, total)
	e.report.Series = append(e.report.Series, copies)
	if err != nil {
		return err
	}
	e.say("three copies again after %s", time.Since(pulled).Round(100*time.Millisecond))
	return judgeDisk(ctx, e, p)
}

func judgeDisk(ctx context.Context, e *Env, p *probeVM) error {
	if err := p.stopLoad(ctx); err != nil {
		return err
	}
	stall := p.acks.watched()
	st, err := p.status(ctx)
	if err != nil {
		return err
	}
	e.say("reading everything back")
	bad, err := p.fill(ctx, fillChunks, true, 5*time.Minute)
	if err != nil {
		return err
	}
	acked, lost, err := p.audit(ctx)
	if err != nil {
		return err
	}
	if _, err := p.reportPauses(ctx); err != nil {
		return err
	}
	after, err := p.status(ctx)
	if err != nil {
		return err
	}
	r, f := e.report, e.report.Figures
	f["io_errors"], f["longest_stall_ms"], f["longest_write_gap_ms"] = after.IOErrors, ms(st.LongestIO), ms(stall)
	r.require(after.IOErrors == 0, "%d I/O errors in the guest (%s)", after.IOErrors, after.LastError)
	r.require(bad == 0, "%d of %d MiB of random data read back wrong", bad, fillChunks)
	r.require(f["rebuilt_bytes"].(size.Bytes) >= fillChunks*probe.FillChunkBytes, "only %s were rebuilt, the volume holds more", f["rebuilt_bytes"])
	e.say("0 errors, longest stall of a write %.0f ms, %d writes acknowledged, %d lost", ms(st.LongestIO), acked, lost)
	return nil
}

// returnDisk puts the disk back and into its pool.
func returnDisk(ctx context.Context, e *Env, d model.Disk, node string) error {
	e.say("putting disk %s of %s back", d.Spec.Path, node)
	if err := e.Faults.InsertDisk(ctx, node, d.Spec.Path); err != nil {
		return fmt.Errorf("insert disk %s of %s: %w", d.Spec.Path, node, err)
	}
	return e.Cluster.ReturnDisk(ctx, d)
}
