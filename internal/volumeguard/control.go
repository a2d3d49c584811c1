package volumeguard

import (
	"context"
	"fmt"
	"net"
	"net/http"

	"roseau/internal/block/volume"
	"roseau/internal/core/repl"
	"roseau/internal/driver/ctlsock"
	"roseau/internal/driver/volumectl"
)

// serveControl answers the control socket until ctx ends. Root alone may open it.
func (p *proc) serveControl(ctx context.Context, l net.Listener) {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /status", func(w http.ResponseWriter, _ *http.Request) { ctlsock.Reply(w, p.status(), nil) })
	mux.HandleFunc("POST /release", func(w http.ResponseWriter, _ *http.Request) {
		p.release()
		w.WriteHeader(http.StatusAccepted)
	})
	mux.HandleFunc("POST /replace-disk", func(w http.ResponseWriter, r *http.Request) {
		var req volumectl.Replace
		if err := ctlsock.Decode(w, r, "replace disk", &req); err != nil {
			ctlsock.Refuse(w, err)
			return
		}
		err := p.set.ReplaceDisk(r.Context(), volume.Replace{Volume: p.cfg.Volume, Old: req.Old, New: req.New, Node: req.Node, Segments: req.Segments, Live: req.Live})
		if err != nil {
			ctlsock.Refuse(w, err)
			return
		}
		w.WriteHeader(http.StatusNoContent)
	})
	mux.HandleFunc("POST /scrub", func(w http.ResponseWriter, r *http.Request) {
		var req volumectl.ScrubRequest
		if err := ctlsock.Decode(w, r, "scrub", &req); err != nil {
			ctlsock.Refuse(w, err)
			return
		}
		if req.Action != volumectl.ScrubShow {
			if err := p.set.Scrub(r.Context(), p.cfg.Volume, req.Action == volumectl.ScrubStop); err != nil {
				ctlsock.Refuse(w, err)
				return
			}
		}
		ctlsock.Reply(w, p.status().Scrub, nil)
	})
	mux.HandleFunc("POST /accept-tail", func(w http.ResponseWriter, r *http.Request) {
		var req volumectl.TailRequest
		if err := ctlsock.Decode(w, r, "accept tail", &req); err != nil {
			ctlsock.Refuse(w, err)
			return
		}
		t, err := p.set.AcceptTail(p.cfg.Volume, req.Accept)
		ctlsock.Reply(w, t, err)
	})
	mux.HandleFunc("POST /snapshot", func(w http.ResponseWriter, r *http.Request) {
		var req repl.SnapshotOrder
		if err := ctlsock.Decode(w, r, "snapshot", &req); err != nil {
			ctlsock.Refuse(w, err)
			return
		}
		if err := p.set.Snapshot(r.Context(), req); err != nil {
			ctlsock.Refuse(w, err)
			return
		}
		w.WriteHeader(http.StatusNoContent)
	})
	if err := ctlsock.Serve(ctx, l, mux); err != nil {
		p.log.Error("control socket ended", "cause", err)
	}
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
	out.Scrub = v.ScrubSummary()
	out.State = v.Summary()
	out.State.Writer = fmt.Sprintf("node %s, %s", p.cfg.Node.Short(), p.cfg.Purpose)
	for _, d := range v.Disks {
		out.Disks = append(out.Disks, volumectl.DiskStatus(d))
	}
	return out
}
