package volume

import (
	"context"
	"errors"
	"fmt"
	"net/http"

	"roseau/internal/base/errs"
	"roseau/internal/base/ids"
	"roseau/internal/core/repl"
	"roseau/internal/driver/volumectl"
	"roseau/internal/store"
	"roseau/internal/svc/pool"
	"roseau/internal/svc/records"
)

// Writer is who writes a volume now.
type Writer struct {
	Node    ids.ID
	Epoch   uint64
	Purpose repl.Purpose
	VM      ids.ID // of PurposeVM
	Held    bool   // a VM is placed on a node, whether its guard holds the volume yet or not
	Open    bool   // somebody has it open
}

// WriterOf tells who writes a volume.
func (s *Service) WriterOf(ctx context.Context, vol ids.ID) (Writer, error) {
	rec, err := records.Volume(ctx, s.env.Store, vol)
	if err != nil {
		return Writer{}, err
	}
	w := Writer{Node: rec.Own.Node, Epoch: rec.Own.Epoch, Purpose: rec.Own.Purpose, VM: rec.Cfg.VM}
	if !rec.Cfg.VM.IsZero() {
		pl, err := records.Placement(ctx, s.env.Store, rec.Cfg.VM)
		if err != nil {
			return w, err
		}
		w.Held = !pl.Value.Node.IsZero()
	}
	if w.Held {
		w.Open = rec.Own.Purpose == repl.PurposeVM
		return w, nil
	}
	st, err := s.WriterStatus(ctx, vol)
	w.Open = err == nil && !final(st.Phase)
	return w, nil
}

// Scrub starts, stops or shows the comparison of a volume's copies by the writer
// that w names. errs.Unavailable: it does not serve the volume.
func (s *Service) Scrub(ctx context.Context, vol ids.ID, w Writer, a volumectl.ScrubAction) (volumectl.ScrubStatus, error) {
	var st volumectl.ScrubStatus
	if !w.Open {
		return st, errs.New(errs.Unavailable, "scrub volume %s: nobody has it open", vol)
	}
	if w.Held {
		path := fmt.Sprintf("/v1/nodes/%s/vms/%s/scrub", w.Node, w.VM)
		return st, s.env.Ask(ctx, w.Node, http.MethodPost, path, volumectl.ScrubRequest{Volume: vol, Action: a}, &st)
	}
	if w.Node == s.env.Node {
		return s.writers.Scrub(ctx, vol, a)
	}
	return st, s.env.Ask(ctx, w.Node, http.MethodPost, writerPath(w.Node, vol)+"/scrub", volumectl.ScrubRequest{Action: a}, &st)
}

// Maintain opens a volume that nobody has open for maintenance, without waiting:
// what its copies tell of damage is repaired, and with scrub they are compared.
// errs.Unavailable: no living node has an in-sync copy.
func (s *Service) Maintain(ctx context.Context, vol ids.ID, scrub bool) error {
	view, err := pool.ReadView(ctx, s.env.Store)
	if err != nil {
		return err
	}
	alive, err := store.AliveNodes(ctx, s.env.Store)
	if err != nil {
		return err
	}
	rec := view.Volumes[vol]
	if rec == nil {
		return errs.New(errs.NotFound, "maintain volume %s: it has no records", vol)
	}
	node, ok := nodeWithCopy(view, alive, rec)
	if !ok {
		return errs.New(errs.Unavailable, "maintain volume %s: no living node has an in-sync copy", vol)
	}
	return s.openOn(ctx, node, vol, WriterRequest{Purpose: repl.PurposeMaintenance, Scrub: scrub})
}

// EndMaintenance releases a volume that a maintenance writer holds; another
// writer is left alone.
func (s *Service) EndMaintenance(ctx context.Context, vol ids.ID) error {
	if err := s.Yield(ctx, vol); err != nil && !errors.Is(err, errs.NotFound) {
		return err
	}
	return nil
}
