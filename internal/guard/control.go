package guard

import (
	"context"
	"errors"
	"net/http"
	"strconv"
	"time"

	"roseau/internal/base/errs"
	"roseau/internal/base/ids"
	"roseau/internal/base/paths"
	"roseau/internal/block/volume"
	"roseau/internal/core/repl"
	"roseau/internal/core/vmguard"
	"roseau/internal/driver/ctlsock"
	"roseau/internal/driver/guardctl"
	"roseau/internal/driver/volumectl"
)

// waitLimit is how long GET /status?after= waits for a change.
const waitLimit = 10 * time.Second

func conflict(format string, args ...any) error { return errs.New(errs.Conflict, format, args...) }

// serveControl answers on the control socket. Root alone may open it.
func (g *guard) serveControl(ctx context.Context) error {
	path := paths.VMControl(g.cfg.VM)
	l, err := ctlsock.Listen(path)
	if err != nil {
		return err
	}
	con := newConsole(g.files, g.log)
	mux := http.NewServeMux()
	mux.HandleFunc("GET /status", g.getStatus)
	mux.HandleFunc("POST /console", func(w http.ResponseWriter, r *http.Request) { con.attach(ctx, w, r) })
	handle(mux, g, "POST /stop", func(r guardctl.StopRequest) error {
		if !g.core.CanStop() {
			return errs.New(errs.Conflict, "stop vm %s: its migration is being decided", g.cfg.Name).
				WithHint("ask again in a few seconds")
		}
		g.step(vmguard.UserStop{Force: r.Force, Timeout: r.Timeout})
		return nil
	})
	handle(mux, g, "POST /migrate", g.migrate)
	handle(mux, g, "DELETE /migrate", func(empty) error { g.step(vmguard.UserCancel{}); return nil })
	handle(mux, g, "POST /reset", g.whileRunning("reset", vmguard.UserReset{}))
	handle(mux, g, "POST /pause", g.whileRunning("pause", vmguard.UserPause{}))
	handle(mux, g, "POST /resume", g.whileRunning("resume", vmguard.UserResume{}))
	mux.HandleFunc("POST /stay", g.stay)
	mux.HandleFunc("POST /replace-disk", g.replaceDisk)
	mux.HandleFunc("POST /snapshot", g.takeSnapshot)
	mux.HandleFunc("POST /scrub", g.scrub)
	mux.HandleFunc("POST /accept-tail", g.acceptTail)
	mux.HandleFunc("GET /screenshot", g.screenshot)
	g.async(func() {
		defer context.AfterFunc(ctx, con.close)()
		if err := ctlsock.Serve(ctx, l, mux); err != nil {
			g.log.Error("control socket ended", "cause", err)
		}
	})
	return nil
}

type empty struct{}

// handle decodes a request, has f run by the loop, and answers 204 or a problem.
func handle[T any](mux *http.ServeMux, g *guard, pattern string, f func(T) error) {
	mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
		var req T
		if err := ctlsock.Decode(w, r, r.URL.Path, &req); err != nil {
			ctlsock.Refuse(w, err)
			return
		}
		done := make(chan error, 1)
		g.inLoop(func() { done <- f(req) })
		select {
		case err := <-done:
			if err != nil {
				ctlsock.Refuse(w, err)
				return
			}
			w.WriteHeader(http.StatusNoContent)
		case <-r.Context().Done():
		case <-time.After(10 * time.Second):
			ctlsock.Refuse(w, errs.New(errs.Unavailable, "%s vm %s: the guard does not answer", r.URL.Path, g.cfg.Name))
		}
	})
}

func (g *guard) whileRunning(what string, e vmguard.Event) func(empty) error {
	return func(empty) error {
		if phase, _ := g.core.Phase(); phase != vmguard.Running {
			return conflict("%s vm %s: it is %s", what, g.cfg.Name, phase)
		}
		g.step(e)
		return nil
	}
}

// held returns the set of volumes, or nil if the guard does not hold them.
func (g *guard) held(ctx context.Context) volume.Handle {
	ch := make(chan volume.Handle, 1)
	g.inLoop(func() { ch <- g.vols })
	select {
	case h := <-ch:
		return h
	case <-ctx.Done():
		return nil
	}
}

// stay tells the writer that no other node can take the VM [S13].
func (g *guard) stay(w http.ResponseWriter, r *http.Request) {
	h := g.held(r.Context())
	if h == nil {
		ctlsock.Refuse(w, conflict("keep vm %s here: it does not hold its volumes", g.cfg.Name))
		return
	}
	if err := h.MoveRefused(); err != nil {
		ctlsock.Refuse(w, err)
		return
	}
	w.WriteHeader(http.StatusNoContent)
}

// takeSnapshot takes or deletes a snapshot of one volume, or takes one of all.
func (g *guard) takeSnapshot(w http.ResponseWriter, r *http.Request) {
	var req repl.SnapshotOrder
	if err := ctlsock.Decode(w, r, "snapshot", &req); err != nil {
		ctlsock.Refuse(w, err)
		return
	}
	h := g.held(r.Context())
	if h == nil {
		ctlsock.Refuse(w, conflict("snapshot vm %s: it does not hold its volumes", g.cfg.Name))
		return
	}
	if err := h.Snapshot(r.Context(), req); err != nil {
		ctlsock.Refuse(w, err)
		return
	}
	w.WriteHeader(http.StatusNoContent)
}

// scrub starts or stops the comparison of a volume's copies, and tells how it is.
func (g *guard) scrub(w http.ResponseWriter, r *http.Request) {
	var req volumectl.ScrubRequest
	if err := ctlsock.Decode(w, r, "scrub", &req); err != nil {
		ctlsock.Refuse(w, err)
		return
	}
	h := g.held(r.Context())
	if h == nil {
		ctlsock.Refuse(w, conflict("scrub volume %s: vm %s does not hold its volumes", req.Volume, g.cfg.Name))
		return
	}
	if req.Action != volumectl.ScrubShow {
		if err := h.Scrub(r.Context(), req.Volume, req.Action == volumectl.ScrubStop); err != nil {
			ctlsock.Refuse(w, err)
			return
		}
	}
	for _, v := range h.Status().Volumes {
		if v.Volume == req.Volume {
			ctlsock.Reply(w, v.ScrubSummary(), nil)
			return
		}
	}
	ctlsock.Refuse(w, errs.New(errs.NotFound, "scrub volume %s: vm %s does not have it", req.Volume, g.cfg.Name))
}

// acceptTail tells which copies a volume waits to be allowed to go on with, or lets it.
func (g *guard) acceptTail(w http.ResponseWriter, r *http.Request) {
	var req volumectl.TailRequest
	if err := ctlsock.Decode(w, r, "accept tail", &req); err != nil {
		ctlsock.Refuse(w, err)
		return
	}
	h := g.held(r.Context())
	if h == nil {
		ctlsock.Refuse(w, conflict("accept the tail of volume %s: vm %s does not hold its volumes", req.Volume, g.cfg.Name))
		return
	}
	t, err := h.AcceptTail(req.Volume, req.Accept)
	ctlsock.Reply(w, t, err)
}

// replaceDisk moves the copies of all volumes that lie on one disk to another.
func (g *guard) replaceDisk(w http.ResponseWriter, r *http.Request) {
	var req guardctl.ReplaceDiskRequest
	if err := ctlsock.Decode(w, r, r.URL.Path, &req); err != nil {
		ctlsock.Refuse(w, err)
		return
	}
	h := g.held(r.Context())
	if h == nil {
		ctlsock.Refuse(w, conflict("replace disk %s: vm %s does not hold its volumes", req.Old, g.cfg.Name))
		return
	}
	var all error
	for _, v := range h.Status().Volumes {
		node, has := ids.ID{}, false
		for _, d := range v.Disks {
			if d.Disk == req.Old {
				node, has = d.Node, true
			}
		}
		if !req.Node.IsZero() {
			node = req.Node
		}
		if has && (req.Volume.IsZero() || req.Volume == v.Volume) {
			all = errors.Join(all, h.ReplaceDisk(r.Context(), volume.Replace{Volume: v.Volume, Old: req.Old, New: req.New, Node: node, Segments: req.Segments, Live: req.Live}))
		}
	}
	if all != nil {
		ctlsock.Refuse(w, all)
		return
	}
	w.WriteHeader(http.StatusNoContent)
}

// getStatus answers at once, or with ?after=REVISION when there is news.
func (g *guard) getStatus(w http.ResponseWriter, r *http.Request) {
	if q := r.URL.Query().Get("after"); q != "" {
		after, err := strconv.ParseUint(q, 10, 64)
		if err != nil {
			ctlsock.Refuse(w, errs.New(errs.Invalid, "get status: after=%q is no revision", q))
			return
		}
		g.waitFor(r.Context(), after)
	}
	ctlsock.Reply(w, g.snapshot(), nil)
}

func (g *guard) waitFor(ctx context.Context, after uint64) {
	t := time.NewTimer(waitLimit)
	defer t.Stop()
	for {
		g.mu.Lock()
		rev, changed := g.status.Revision, g.changed
		g.mu.Unlock()
		if rev > after {
			return
		}
		select {
		case <-changed:
		case <-t.C:
			return
		case <-ctx.Done():
			return
		}
	}
}
