package volume

import (
	"context"
	"errors"
	"slices"
	"time"

	"roseau/internal/base/errs"
	"roseau/internal/base/ids"
	"roseau/internal/core/repl"
	"roseau/internal/driver/storagectl"
	"roseau/internal/svc/records"
)

// strayInterval is how often a node looks for copies that lie elsewhere now: a
// moved copy, or a dead disk that came back after it was rebuilt.
const strayInterval = 10 * time.Second

// freeStray frees them. What a disk holds is listed first and the records are
// read afterwards.
func (s *Service) freeStray(ctx context.Context) error {
	copies, err := s.storage.Copies(ctx)
	if err != nil || len(copies) == 0 {
		return err
	}
	vols, err := records.Volumes(ctx, s.env.Store)
	if err != nil {
		return err
	}
	var all error
	for _, c := range strays(copies, vols) {
		err := s.storage.DropStray(ctx, c)
		switch {
		case errors.Is(err, errs.Unavailable): // opened or written since
		case err != nil:
			all = errors.Join(all, err)
		default:
			s.env.Log.Info("freed a copy that lies elsewhere now", "vol", c.Volume, "disk", c.Disk, "extents", c.Extents)
		}
	}
	return all
}

// strays picks the copies that no segment of their volume names. Nothing is freed
// because something is missing: the volume's records must be there, of the same
// generation, and newer than all that the copy was told. Records of a restored
// etcd are older than what the copies that it forgot were told [I14].
func strays(copies []storagectl.Copy, vols map[ids.ID]*repl.VolumeRecord) []storagectl.Copy {
	var out []storagectl.Copy
	for _, c := range copies {
		v := vols[c.Volume]
		if v == nil || v.Cfg.State != repl.VolumeLive || slices.Contains(v.Seg.Disks, c.Disk) {
			continue
		}
		own := &v.Own
		if own.Generation != c.Promise.Generation || own.Epoch < c.Promise.Epoch || own.CfgVersion <= c.CfgVersion ||
			own.Epoch == c.Promise.Epoch && own.Nonce != c.Promise.Nonce {
			continue
		}
		out = append(out, c)
	}
	return out
}
