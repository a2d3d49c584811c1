package volumeguard

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"time"

	"roseau/internal/base/errs"
	"roseau/internal/base/size"
	"roseau/internal/block/volume"
	"roseau/internal/core/repl"
	"roseau/internal/driver/volumectl"
	"roseau/internal/model"
)

// serveControl answers the control socket until ctx ends. Root alone may open it.
func (p *proc) serveControl(ctx context.Context, l net.Listener) {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /status", func(w http.ResponseWriter, _ *http.Request) { answer(w, p.status()) })
	mux.HandleFunc("POST /release", func(w http.ResponseWriter, _ *http.Request) {
		p.release()
		w.WriteHeader(http.StatusAccepted)
	})
	mux.HandleFunc("POST /replace-disk", func(w http.ResponseWriter, r *http.Request) {
		var req volumectl.Replace
		d := json.NewDecoder(http.MaxBytesReader(w, r.Body, 1<<16))
		d.DisallowUnknownFields()
		if err := d.Decode(&req); err != nil {
			refuse(w, errs.New(errs.Invalid, "replace disk: %w", err))
			return
		}
		err := p.set.ReplaceDisk(r.Context(), volume.Replace{Volume: p.cfg.Volume, Old: req.Old, New: req.New, Node: req.Node})
		if err != nil {
			refuse(w, err)
			return
		}
		w.WriteHeader(http.StatusNoContent)
	})
	mux.HandleFunc("POST /snapshot", func(w http.ResponseWriter, r *http.Request) {
		var req repl.SnapshotOrder
		d := json.NewDecoder(http.MaxBytesReader(w, r.Body, 1<<16))
		d.DisallowUnknownFields()
		if err := d.Decode(&req); err != nil {
			refuse(w, errs.New(errs.Invalid, "snapshot: %w", err))
			return
		}
		if err := p.set.Snapshot(r.Context(), req); err != nil {
			refuse(w, err)
			return
		}
		w.WriteHeader(http.StatusNoContent)
	})
	srv := &http.Server{Handler: mux, ReadHeaderTimeout: 10 * time.Second}
	defer context.AfterFunc(ctx, func() { srv.Close() })()
	if err := srv.Serve(l); err != nil && ctx.Err() == nil {
		p.log.Error("control socket ended", "cause", err)
	}
}

func answer(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	json.NewEncoder(w).Encode(v) // the client may be gone
}

func refuse(w http.ResponseWriter, err error) {
	kind, code := "internal", http.StatusInternalServerError
	if k := errs.Kind(err); k != nil {
		kind, code = k.Error(), http.StatusConflict
	}
	w.Header().Set("Content-Type", "application/problem+json")
	w.WriteHeader(code)
	json.NewEncoder(w).Encode(model.Problem{Kind: kind, Text: err.Error(), Hint: errs.Hint(err)})
}

// status is the process in the words of the control API.
func (p *proc) status() volumectl.Status {
	p.mu.Lock()
	out := volumectl.Status{Volume: p.cfg.Volume, Node: p.cfg.Node, Purpose: p.cfg.Purpose, Phase: p.phase, Reason: p.reason, Socket: p.socket, Snapshot: p.cfg.Snapshot}
	p.mu.Unlock()
	st := p.set.Status()
	if len(st.Volumes) == 0 {
		return out
	}
	v := st.Volumes[0]
	out.Waiting = v.Waiting
	out.State = Summary(v)
	out.State.Writer = fmt.Sprintf("node %s, %s", p.cfg.Node.Short(), p.cfg.Purpose)
	for _, d := range v.Disks {
		out.Disks = append(out.Disks, volumectl.DiskStatus(d))
	}
	return out
}

// Summary is a volume's status as the API shows it.
func Summary(v volume.VolumeStatus) model.VolumeStatus {
	out := model.VolumeStatus{Health: model.Healthy, Copies: v.CopiesInSync, Epoch: v.Epoch}
	for _, d := range v.Disks {
		if d.InSync {
			continue
		}
		if out.Health == model.Healthy {
			out.Health = model.Degraded
		}
		out.Out = append(out.Out, fmt.Sprintf("%s (%s)", d.Disk.Short(), d.Reason))
		if d.Syncing {
			out.Health = model.Syncing
			// Objects are extents; the last one may be shorter.
			out.SyncDone += size.Bytes(d.SyncDone) * repl.ExtentBytes
			out.SyncTotal += size.Bytes(d.SyncTotal) * repl.ExtentBytes
		}
	}
	switch {
	case v.CopiesInSync == 0:
		out.Health = model.Waiting
	case v.CopiesInSync == 1 && v.Copies > 1 && out.Health == model.Degraded:
		out.Health = model.HealthOne
	}
	return out
}
