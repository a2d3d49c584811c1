package disk

import (
	"context"

	"github.com/danielgtaylor/huma/v2"

	"roseau/internal/api"
	"roseau/internal/base/errs"
	"roseau/internal/base/ids"
	"roseau/internal/core/repl"
	"roseau/internal/model"
	"roseau/internal/store"
	"roseau/internal/svc/records"
)

// Light switches the lamp at a disk's bay.
type Light interface {
	// Set switches it; Unavailable says in words why it cannot.
	Set(path string, on bool) error
}

// ForgetRequest is the body of POST /v1/nodes/{node}/disks/forget.
type ForgetRequest struct {
	Disk ids.ID `json:"disk"`
}

// LocateRequest is the body of POST /v1/disks/{ref}/locate and of its node's.
type LocateRequest struct {
	Disk ids.ID `json:"disk,omitzero"` // filled in
	Off  bool   `json:"off,omitempty" doc:"switch the lamp off"`
}

// LocateAnswer says what was done.
type LocateAnswer struct {
	Text string `json:"text"`
}

func (s *Service) locateRoutes(r *api.Router, on func(huma.Operation) huma.Operation) {
	huma.Register(r, api.Op("locate-disk", "POST", "/v1/disks/{ref}/locate", "Switch the lamp at a disk's bay"), func(ctx context.Context, in *struct {
		api.Ref
		Body LocateRequest
	}) (*api.Body[LocateAnswer], error) {
		return api.OK(s.Locate(ctx, in.Ref.Ref, in.Body.Off))
	})
	huma.Register(r, on(api.Op("locate-node-disk", "POST", "/v1/nodes/{node}/disks/locate", "Switch the lamp at the bay of a disk of a node")), func(ctx context.Context, in *struct {
		NodeRef
		Body LocateRequest
	}) (*struct{}, error) {
		return nil, s.locateHere(ctx, in.Body)
	})
	huma.Register(r, on(api.Op("forget-node-disk", "POST", "/v1/nodes/{node}/disks/forget", "Give back a disk of a node that no volume names")), func(ctx context.Context, in *struct {
		NodeRef
		Body ForgetRequest
	}) (*struct{}, error) {
		vols, err := records.Volumes(ctx, s.env.Store)
		if err != nil {
			return nil, err
		}
		if n := segmentsOn(vols, in.Body.Disk); n > 0 {
			return nil, errs.New(errs.Conflict, "forget disk %s: it holds copies of %d segments", in.Body.Disk, n)
		}
		return nil, s.storage.Forget(ctx, in.Body.Disk)
	})
}

// segmentsOn counts the segments whose copies a disk is to hold.
func segmentsOn(vols map[ids.ID]*repl.VolumeRecord, d ids.ID) (n int) {
	for _, v := range vols {
		for _, row := range v.Seg.Map {
			for _, i := range row {
				if int(i) < len(v.Seg.Disks) && v.Seg.Disks[i] == d {
					n++
				}
			}
		}
	}
	return n
}

// Locate switches the lamp at a disk's bay.
func (s *Service) Locate(ctx context.Context, ref string, off bool) (LocateAnswer, error) {
	d, err := store.Get[model.Disk](ctx, s.env.Store.Relaxed(), ref)
	if err != nil {
		return LocateAnswer{}, err
	}
	req := LocateRequest{Disk: d.ID, Off: off}
	if d.Spec.Node == s.env.Node {
		err = s.locateHere(ctx, req)
	} else {
		err = s.env.Ask(ctx, d.Spec.Node, "POST", "/v1/nodes/"+d.Spec.Node.String()+"/disks/locate", req, nil)
	}
	if err != nil {
		return LocateAnswer{}, err
	}
	text := "the lamp at disk " + d.Name + " is on; `roseau disk locate " + d.Name + " --off` ends it"
	if off {
		text = "the lamp at disk " + d.Name + " is off"
	}
	return LocateAnswer{text}, nil
}

func (s *Service) locateHere(ctx context.Context, req LocateRequest) error {
	d, err := store.GetID[model.Disk](ctx, s.env.Store.Relaxed(), req.Disk)
	if err != nil {
		return err
	}
	return s.light.Set(d.Spec.Path, !req.Off)
}
