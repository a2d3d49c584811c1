package storage

import (
	"context"
	"fmt"
	"slices"

	"roseau/internal/block/disk"
	"roseau/internal/block/wire"
	"roseau/internal/driver/storagectl"
)

// copies lists what the open disks hold of volumes.
func (p *process) copies(ctx context.Context) ([]storagectl.Copy, error) {
	out := []storagectl.Copy{}
	err := p.inTurn(ctx, func() {
		p.mu.Lock()
		disks := slices.Clone(p.disks)
		p.mu.Unlock()
		for _, d := range disks {
			if d.core == nil || d.core.Dead() != nil {
				continue
			}
			for _, vol := range d.core.Volumes() {
				if i, ok := d.core.Volume(vol); ok {
					out = append(out, storagectl.Copy{Disk: d.id, Volume: vol, Promise: i.Promise, CfgVersion: i.Told.CfgVersion, Max: i.MaxMark, Extents: i.Extents, MergeStuck: d.core.MergeStuck(vol)})
				}
			}
		}
	})
	return out, err
}

// dropStray frees a copy of a volume that lies elsewhere, if it is still as the
// caller saw it.
func (p *process) dropStray(ctx context.Context, r storagectl.Copy) error {
	seen := disk.VolumeInfo{Volume: r.Volume, Promise: r.Promise, MaxMark: r.Max, Told: wire.Told{CfgVersion: r.CfgVersion}}
	err := p.drop(ctx, func(token uint64) { p.core.DropStray(p.o.Clock.Now(), token, r.Disk, seen) })
	if err != nil {
		return fmt.Errorf("drop the stray copy of volume %s on disk %s: %w", r.Volume, r.Disk, err)
	}
	return nil
}
