package volume

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"roseau/internal/base/errs"
	"roseau/internal/base/ids"
	"roseau/internal/base/paths"
	"roseau/internal/block/writer"
)

// Scrub starts or stops the comparison of a volume's copies.
func (s *Set) Scrub(ctx context.Context, vol ids.ID, stop bool) error {
	index := -1
	for _, d := range s.vols {
		if d.id == vol {
			index = d.index
		}
	}
	if index < 0 {
		return errs.New(errs.NotFound, "scrub volume %s: it is not in this set", vol)
	}
	kind := writer.Scrub
	if stop {
		kind = writer.StopScrub
	}
	done := make(chan error, 1)
	s.call(func() {
		if s.state != writer.Serving {
			done <- errs.New(errs.Unavailable, "scrub volume %s: it is not being served", vol)
			return
		}
		s.do(writer.Command{Kind: kind, Volume: index})()
		s.publish()
		done <- nil
	})
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-s.ctx.Done():
		return errs.New(errs.Unavailable, "scrub volume %s: its writer is closed", vol)
	}
}

// maxEvidence bounds the files that are kept: the first ones tell the most.
const maxEvidence = 256

// keepEvidence writes a block that is about to be overwritten. It is on the event
// loop, but for what should never happen.
func (s *Set) keepEvidence(e writer.Evidence) {
	dir := s.cfg.Evidence
	if dir == "" {
		dir = paths.Evidence
	}
	name := fmt.Sprintf("%s-%d-%d-%s-%08x-%d.block", e.Volume, e.Extent, e.Block, e.Disk, e.Tag.CRC, e.Tag.Stamp)
	err := os.MkdirAll(dir, 0o700)
	if err == nil {
		var have []os.DirEntry
		if have, err = os.ReadDir(dir); err == nil && len(have) >= maxEvidence {
			err = errs.New(errs.Exhausted, "keep evidence: %d files are there already", len(have))
		}
	}
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, name), e.Data, 0o600)
	}
	if err != nil && !errors.Is(err, os.ErrExist) {
		s.log.Error("evidence is not kept", "vol", e.Volume, "err", err)
		return
	}
	s.log.Error("copies differed; the block that is overwritten is kept", "file", filepath.Join(dir, name), "vol", e.Volume, "disk", e.Disk,
		"extent", e.Extent, "block", e.Block, "crc", e.Tag.CRC, "stamp", e.Tag.Stamp, "epoch", e.Mark.Epoch, "wseq", e.Mark.Wseq)
}
