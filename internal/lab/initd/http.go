package initd

import (
	"context"
	"encoding/json"
	"errors"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"roseau/internal/base/errs"
	"roseau/internal/unit"
)

// Handler answers the requests of unit.LabClient with c.
func Handler(c unit.Controller) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /units", func(w http.ResponseWriter, r *http.Request) {
		list, err := c.List(r.Context())
		answer(w, list, err)
	})
	mux.HandleFunc("GET /units/{name}", func(w http.ResponseWriter, r *http.Request) {
		st, err := c.Status(r.Context(), unit.Name(r.PathValue("name")))
		answer(w, st, err)
	})
	mux.HandleFunc("POST /units/{name}/{verb}", func(w http.ResponseWriter, r *http.Request) {
		var req unit.LabRequest
		if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, 4096)).Decode(&req); err != nil {
			answer(w, nil, errs.New(errs.Invalid, "read request: %w", err))
			return
		}
		name := unit.Name(r.PathValue("name"))
		var err error
		switch verb := r.PathValue("verb"); verb {
		case "start":
			err = c.Start(r.Context(), name)
		case "stop":
			err = c.Stop(r.Context(), name)
		case "kill":
			err = c.Kill(r.Context(), name, req.Signal)
		default:
			err = errs.New(errs.Invalid, "order %q for unit %s: want start, stop or kill", verb, name)
		}
		answer(w, struct{}{}, err)
	})
	return mux
}

func answer(w http.ResponseWriter, v any, err error) {
	w.Header().Set("Content-Type", "application/json")
	if err != nil {
		e := unit.LabError{Error: err.Error()}
		status := http.StatusInternalServerError
		if kind := errs.Kind(err); kind != nil {
			e.Kind = kind.Error()
			status = http.StatusBadRequest
		}
		w.WriteHeader(status)
		v = e
	}
	_ = json.NewEncoder(w).Encode(v) // the client is gone if it fails
}

// ListenPrivate listens on a unix socket that only root can reach.
func ListenPrivate(path string) (net.Listener, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, err
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		return nil, err
	}
	if err := os.Chmod(path, 0o600); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return l, nil
}

// Serve answers HTTP on l until ctx ends, then closes l.
func Serve(ctx context.Context, l net.Listener, h http.Handler) error {
	srv := &http.Server{Handler: h, ReadHeaderTimeout: 5 * time.Second}
	stop := context.AfterFunc(ctx, func() { srv.Close() })
	defer stop()
	if err := srv.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}
