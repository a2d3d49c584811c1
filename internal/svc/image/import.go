package image

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"roseau/internal/api"
	"roseau/internal/base/errs"
	"roseau/internal/base/ids"
	"roseau/internal/base/size"
	"roseau/internal/driver/qemuimg"
	"roseau/internal/model"
	"roseau/internal/store"
	"roseau/internal/svc/pool"
	"roseau/internal/svc/task"
	"roseau/internal/svc/volume"
)

// chunkBytes is the memory that an upload takes.
const chunkBytes = 1 << 20

// upload answers POST /v1/images?name=NAME&pool=POOL with the file as body: it
// is stored on this node, checked, and imported by a task.
func (s *Service) upload(w http.ResponseWriter, req *http.Request) {
	q := req.URL.Query()
	for k := range q {
		if k != "name" && k != "pool" {
			api.WriteProblem(w, errs.New(errs.Invalid, "import image: unknown parameter %q", k).WithHint("name and pool"))
			return
		}
	}
	t, err := s.Import(req.Context(), q.Get("name"), q.Get("pool"), req.Body, req.ContentLength)
	if err != nil {
		api.WriteProblem(w, err)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(http.StatusAccepted)
	json.NewEncoder(w).Encode(t) // the client may be gone
}

// file is an upload on this node.
type file struct {
	path   string
	bytes  int64
	sha256 string
	format string
}

// Import stores the body in a file, refuses what cannot be an image, and starts
// the task that copies it into the pool. length is -1 if it is not known.
func (s *Service) Import(ctx context.Context, name, poolName string, body io.Reader, length int64) (*model.Task, error) {
	img := &model.Image{Meta: model.Meta{ID: ids.New(), Name: name}, Spec: model.ImageSpec{Pool: poolName}}
	p, view, err := s.checkNew(ctx, img, length)
	if err != nil {
		return nil, err
	}
	f, err := s.store(ctx, img, body, func(n int64) error { return view.Fits(p, "import image "+name, size.Bytes(n)) })
	if err != nil {
		return nil, err
	}
	err = s.inspect(ctx, img, f)
	if err == nil {
		err = view.Fits(p, "import image "+name, img.Spec.Size)
	}
	if err != nil {
		return nil, errors.Join(err, os.Remove(f.path))
	}
	t, err := s.env.Tasks.Start(ctx, "image import "+name, func(ctx context.Context, h *task.Handle) (string, error) {
		return s.finish(ctx, h, img, f)
	})
	if err != nil {
		return nil, errors.Join(err, os.Remove(f.path))
	}
	return t, nil
}

// checkNew refuses before a byte is read: the name, the pool, a length that
// cannot fit.
func (s *Service) checkNew(ctx context.Context, img *model.Image, length int64) (*model.Pool, *pool.View, error) {
	if err := model.CheckName(model.KindImage, img.Name); err != nil {
		return nil, nil, err
	}
	if _, err := store.Get[model.Image](ctx, s.env.Store, img.Name); err == nil {
		return nil, nil, errs.New(errs.Conflict, "import image %s: the name is taken", img.Name).WithHint("choose another, or `roseau image delete %s`", img.Name)
	} else if !errors.Is(err, errs.NotFound) {
		return nil, nil, err
	}
	view, err := pool.ReadView(ctx, s.env.Store)
	if err != nil {
		return nil, nil, err
	}
	p, err := view.Pool(img.Spec.Pool)
	if err != nil {
		return nil, nil, err
	}
	img.Spec.Pool = p.Name
	if length == 0 {
		return nil, nil, errs.New(errs.Invalid, "import image %s: the file is empty", img.Name)
	}
	return p, view, view.Fits(p, "import image "+img.Name, size.Bytes(max(length, 1)))
}

// store streams the body to a file. Blocks of zeros become holes, so a raw image
// takes no more space than it has content.
func (s *Service) store(ctx context.Context, img *model.Image, body io.Reader, fits func(int64) error) (_ *file, err error) {
	if err := os.MkdirAll(s.uploads, 0o700); err != nil {
		return nil, fmt.Errorf("import image %s: %w", img.Name, err)
	}
	out, err := os.CreateTemp(s.uploads, img.Name+"-*")
	if err != nil {
		return nil, fmt.Errorf("import image %s: %w", img.Name, err)
	}
	f := &file{path: out.Name()}
	defer func() {
		if err = errors.Join(err, out.Close()); err != nil {
			err = errors.Join(fmt.Errorf("import image %s: %w", img.Name, err), os.Remove(f.path))
		}
	}()
	sum := sha256.New()
	buf, zeros := make([]byte, chunkBytes), make([]byte, chunkBytes)
	for {
		n, rerr := io.ReadFull(body, buf)
		chunk := buf[:n]
		if f.bytes == 0 {
			f.format = qemuimg.Detect(chunk[:min(n, qemuimg.HeadBytes)])
			if err := accept(f.format); err != nil {
				return nil, err
			}
		}
		sum.Write(chunk)
		if !bytes.Equal(chunk, zeros[:n]) {
			if _, err := out.WriteAt(chunk, f.bytes); err != nil {
				return nil, noSpace(err)
			}
		}
		f.bytes += int64(n)
		if err := fits(f.bytes); err != nil {
			return nil, err
		}
		if rerr == io.EOF || rerr == io.ErrUnexpectedEOF {
			break
		}
		if rerr != nil {
			return nil, errs.New(errs.Unavailable, "the upload broke after %s: %w", size.Bytes(f.bytes), rerr).WithHint("send it again")
		}
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
	}
	f.sha256 = hex.EncodeToString(sum.Sum(nil))
	return f, out.Truncate(f.bytes)
}

func noSpace(err error) error {
	return errs.New(errs.Exhausted, "store the upload: %w", err).WithHint("free space where this node keeps its state")
}

// accept refuses formats that are not imported, by their names.
func accept(format string) error {
	switch format {
	case "raw", "qcow2", "iso":
		return nil
	case "gzip", "xz", "bzip2", "zstd", "zip", "7z", "tar":
		return errs.New(errs.Invalid, "the file is a %s archive, want raw or qcow2", format).WithHint("unpack it first")
	}
	return errs.New(errs.Invalid, "the format is %s, want raw or qcow2", format).WithHint("`qemu-img convert -O qcow2 FILE FILE.qcow2`, then import that")
}

// inspect fills in format, size and sum, and refuses files that lead to others.
func (s *Service) inspect(ctx context.Context, img *model.Image, f *file) error {
	img.Spec.SHA256 = f.sha256
	if f.format != "qcow2" {
		img.Spec.Format, img.Spec.Size = "raw", size.Bytes(f.bytes)
		return nil
	}
	ictx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	i, err := qemuimg.Inspect(ictx, f.path, "qcow2")
	bad := func(format string, args ...any) error {
		return errs.New(errs.Invalid, "import image %s: %s", img.Name, fmt.Sprintf(format, args...))
	}
	switch {
	case err != nil:
		return fmt.Errorf("import image %s: %w", img.Name, err)
	case i.Backing != "":
		return errs.New(errs.Invalid, "import image %s: it needs the backing file %q", img.Name, i.Backing).WithHint("`qemu-img convert -O qcow2` makes it whole")
	case i.Specific.Data.DataFile != "":
		return errs.New(errs.Invalid, "import image %s: its data are in another file, %q", img.Name, i.Specific.Data.DataFile).WithHint("`qemu-img convert -O qcow2` makes it whole")
	case i.Encrypted:
		return bad("it is encrypted")
	case i.Specific.Data.Corrupt:
		return bad("qcow2 marks it as corrupt")
	case i.VirtualSize == 0:
		return bad("its virtual size is 0")
	}
	img.Spec.Format, img.Spec.Size = "qcow2", i.VirtualSize
	return nil
}

// finish copies the file into a new volume and makes the image; on failure
// nothing of it stays.
func (s *Service) finish(ctx context.Context, h *task.Handle, img *model.Image, f *file) (_ string, err error) {
	defer func() { err = errors.Join(err, os.Remove(f.path)) }()
	v := &model.Volume{Meta: model.Meta{ID: ids.New(), Name: volumeName(img)},
		Spec: model.VolumeSpec{Pool: img.Spec.Pool, Size: max((img.Spec.Size+model.VolumeAlign-1)/model.VolumeAlign*model.VolumeAlign, model.MinVolume), Image: img.Name}}
	h.Phase("creates volume %s", v.Name)
	if _, err := s.volumes.Create(ctx, v, volume.Owner{}); err != nil {
		return "", err
	}
	h.Phase("copies into pool %s", img.Spec.Pool)
	c := qemuimg.Convert{Source: f.path, SourceFormat: img.Spec.Format}
	err = s.fill(ctx, c, v.ID, img.Spec.Size, func(done, total int64) { h.Progress(done, total, "bytes") })
	if err == nil {
		img.Status = model.ImageStatus{Ready: true, Volume: v.ID}
		_, err = store.Create(ctx, s.env.Store, img)
	}
	if err != nil {
		dctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
		defer cancel()
		return "", errors.Join(fmt.Errorf("import image %s: %w", img.Name, err), s.volumes.Delete(dctx, v.ID))
	}
	s.env.Events.Emit("info", "image "+img.Name, fmt.Sprintf("imported, %s, sha256 %s", img.Spec.Size, img.Spec.SHA256))
	return fmt.Sprintf("image %s: %s, %s, sha256 %s", img.Name, img.Spec.Format, img.Spec.Size, img.Spec.SHA256), nil
}

// volumeName is the name of an image's volume: short enough to be one.
func volumeName(img *model.Image) string {
	return "image-" + img.Name[:min(len(img.Name), 40)] + "-" + img.ID.Short()
}

// Run drops what a daemon that died has left of uploads, then waits for the end.
func (s *Service) Run(ctx context.Context) error {
	old, err := filepath.Glob(filepath.Join(s.uploads, "*"))
	for _, f := range old {
		if st, serr := os.Stat(f); serr != nil || st.ModTime().After(s.started) {
			continue
		}
		if rerr := os.Remove(f); rerr != nil {
			s.env.Log.Warn("remove old upload", "file", f, "err", rerr)
		}
	}
	<-ctx.Done()
	return errors.Join(err, ctx.Err())
}
