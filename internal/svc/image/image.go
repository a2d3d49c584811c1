// Package image keeps images: read-only disks that VMs are created from. An image
// is imported from a raw or qcow2 file, streamed to this node with bounded
// memory, inspected, and copied into a volume of a pool; the volume is then the
// image, with copies on three nodes like any other.
package image

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"roseau/internal/api"
	"roseau/internal/base/errs"
	"roseau/internal/base/ids"
	"roseau/internal/base/size"
	"roseau/internal/core/repl"
	"roseau/internal/driver/qemuimg"
	"roseau/internal/driver/volumectl"
	"roseau/internal/model"
	"roseau/internal/store"
	"roseau/internal/svc"
	"roseau/internal/svc/task"
	"roseau/internal/svc/volume"
)

// Volumes is what images need of svc/volume.
type Volumes interface {
	Check(ctx context.Context, v *model.Volume) error
	Create(ctx context.Context, v *model.Volume, o volume.Owner) (*model.Volume, error)
	Delete(ctx context.Context, id ids.ID) error
	OpenHere(ctx context.Context, id ids.ID, req volume.WriterRequest) (volumectl.Status, error)
	CloseHere(ctx context.Context, id ids.ID) error
}

// Service has the operations on images.
type Service struct {
	env     *svc.Env
	volumes Volumes
	uploads string // directory
	started time.Time

	// convert copies; qemuimg's Run, but in tests.
	convert func(ctx context.Context, c qemuimg.Convert, progress func(float64)) error

	mu      sync.Mutex // protects exports
	exports map[ids.ID]*export
}

// export is an image volume that is open for reading on this node.
type export struct {
	mu     sync.Mutex // held while it opens or closes
	users  int
	socket string
}

// New returns the service of a node; uploads is where files wait while they are
// imported.
func New(env *svc.Env, vols Volumes, uploads string) *Service {
	return &Service{env: env, volumes: vols, uploads: uploads, started: env.Clock.Wall(), exports: map[ids.ID]*export{},
		convert: func(ctx context.Context, c qemuimg.Convert, p func(float64)) error { return c.Run(ctx, p) }}
}

// Routes adds the operations.
func (s *Service) Routes(r *api.Router) {
	huma.Register(r, api.Op("list-images", "GET", "/v1/images", "List images"), func(ctx context.Context, _ *struct{}) (*api.Body[[]*model.Image], error) {
		return api.OK(store.List[model.Image](ctx, s.env.Store.Relaxed()))
	})
	huma.Register(r, api.Op("get-image", "GET", "/v1/images/{ref}", "Show an image"), func(ctx context.Context, in *api.Ref) (*api.Body[*model.Image], error) {
		return api.OK(store.Get[model.Image](ctx, s.env.Store.Relaxed(), in.Ref))
	})
	huma.Register(r, api.Op("delete-image", "DELETE", "/v1/images/{ref}", "Delete an image; VMs made of it stay"), func(ctx context.Context, in *api.Ref) (*api.AcceptTask, error) {
		return api.Accepted(s.StartDelete(ctx, in.Ref))
	})
	r.Mux.Post("/v1/images", s.upload)
}

// StartDelete starts the task that deletes an image.
func (s *Service) StartDelete(ctx context.Context, ref string) (*model.Task, error) {
	img, err := store.Get[model.Image](ctx, s.env.Store, ref)
	if err != nil {
		return nil, err
	}
	return s.env.Tasks.Start(ctx, "image delete "+img.Name, func(ctx context.Context, _ *task.Handle) (string, error) {
		if err := s.volumes.Delete(ctx, img.Status.Volume); err != nil {
			return "", err
		}
		for range 5 {
			img, err := store.GetID[model.Image](ctx, s.env.Store, img.ID)
			if errors.Is(err, errs.NotFound) {
				break
			}
			if err != nil {
				return "", err
			}
			if err := store.Delete(ctx, s.env.Store, img); err == nil || !errors.Is(err, errs.Conflict) {
				return "image " + img.Name + " deleted", err
			}
		}
		return "image " + img.Name + " deleted", nil
	})
}

// Ready returns an image that can be copied.
func (s *Service) Ready(ctx context.Context, name string) (*model.Image, error) {
	img, err := store.Get[model.Image](ctx, s.env.Store, name)
	if err != nil {
		return nil, err
	}
	if !img.Status.Ready {
		return nil, errs.New(errs.Conflict, "use image %s: its import has not ended", img.Name).WithHint("`roseau task list`")
	}
	return img, nil
}

// CopyTo copies an image into a volume that is new and nobody has open.
func (s *Service) CopyTo(ctx context.Context, img *model.Image, vol *model.Volume, progress func(done, total int64)) (err error) {
	src, err := s.open(ctx, img)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.release(ctx, img.Status.Volume)) }()
	return s.fill(ctx, qemuimg.Convert{Source: qemuimg.NBD(src), SourceFormat: "raw"}, vol.ID, img.Spec.Size, progress)
}

// fill copies into a new volume through its import writer on this node.
func (s *Service) fill(ctx context.Context, c qemuimg.Convert, vol ids.ID, total size.Bytes, progress func(done, total int64)) (err error) {
	st, err := s.volumes.OpenHere(ctx, vol, volume.WriterRequest{Purpose: repl.PurposeImport})
	if err != nil {
		return err
	}
	defer func() {
		cctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
		defer cancel()
		err = errors.Join(err, s.volumes.CloseHere(cctx, vol))
	}()
	c.Target, c.TargetIsZero = qemuimg.NBD(st.Socket), true
	return s.convert(ctx, c, func(percent float64) { progress(int64(float64(total)*percent/100), int64(total)) })
}

// waitExport is how long a copy waits for an image that another node has open: a
// volume has one writer, readers included.
const waitExport = 15 * time.Minute

// open opens an image for reading on this node; copies that run at one time
// share it.
func (s *Service) open(ctx context.Context, img *model.Image) (socket string, err error) {
	vol := img.Status.Volume
	s.mu.Lock()
	e := s.exports[vol]
	if e == nil {
		e = &export{}
		s.exports[vol] = e
	}
	s.mu.Unlock()
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.users > 0 {
		e.users++
		return e.socket, nil
	}
	wctx, cancel := context.WithTimeout(ctx, waitExport)
	defer cancel()
	err = svc.WaitFor(wctx, time.Second, func(ctx context.Context) (bool, error) {
		st, err := s.volumes.OpenHere(ctx, vol, volume.WriterRequest{Purpose: repl.PurposeExport})
		if errors.Is(err, errs.Unavailable) || errors.Is(err, errs.Conflict) {
			s.env.Log.Info("image is not free yet", "image", img.Name, "err", err)
			return false, nil
		}
		socket = st.Socket
		return err == nil, err
	})
	if err != nil {
		return "", fmt.Errorf("open image %s: %w", img.Name, err)
	}
	e.users, e.socket = 1, socket
	return socket, nil
}

func (s *Service) release(ctx context.Context, vol ids.ID) error {
	s.mu.Lock()
	e := s.exports[vol]
	s.mu.Unlock()
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.users--; e.users > 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
	defer cancel()
	return s.volumes.CloseHere(ctx, vol)
}
