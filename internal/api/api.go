// Package api serves the REST interface: /v1, described by OpenAPI 3.1 at
// /v1/openapi.json, on the node's unix socket for root and over mutual TLS for
// everybody else. It has no business logic: services add their operations.
//
// Conventions: GET lists and shows; a change that is done at once answers with
// the object (200, 201), one that takes time with a task (202, AcceptTask).
// Errors are RFC 9457 problems with a kind and a hint; handlers return errors
// with kinds and never write a status. Unknown fields are refused by name.
package api

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"path"
	"reflect"
	"strings"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humachi"
	"github.com/go-chi/chi/v5"

	"roseau/internal/base/clock"
	"roseau/internal/base/errs"
	"roseau/internal/model"
	"roseau/internal/pki"
)

// Router is what services add their operations to: huma.Register(r, ...) for
// what OpenAPI can describe, Mux for the rest (websockets, uploads of raw
// bytes), Nodes for what another node must do.
type Router struct {
	huma.API
	Mux   chi.Router
	Nodes *Proxy // nil in tests without other nodes
}

// Routes adds the operations of one service.
type Routes func(r *Router)

// Config is what the API needs beside its services.
type Config struct {
	Version string // of the build, shown in OpenAPI
	Clock   clock.Clock
	Log     *slog.Logger
	Proxy   *Proxy // nil: this node serves everything itself
}

// Server is the API of one node.
type Server struct {
	handler http.Handler
	openAPI *huma.OpenAPI
}

// New builds the API of the given services.
func New(cfg Config, routes ...Routes) *Server {
	mux := chi.NewMux()
	mux.Use(recoverer(cfg.Log), requestLog(cfg))
	mux.NotFound(func(w http.ResponseWriter, r *http.Request) {
		WriteProblem(w, errs.New(errs.NotFound, "%s %s: no such path", r.Method, r.URL.Path).WithHint("/v1/openapi.json lists the paths; a newer client may know more than this node"))
	})
	mux.MethodNotAllowed(func(w http.ResponseWriter, r *http.Request) {
		WriteProblem(w, errs.New(errs.Invalid, "%s %s: the path has no such method", r.Method, r.URL.Path))
	})
	hc := huma.DefaultConfig("Roseau", cfg.Version)
	hc.OpenAPIPath, hc.DocsPath, hc.SchemasPath = "/v1/openapi", "", ""
	hc.CreateHooks = nil // no $schema field in answers
	hc.Components.Schemas = huma.NewMapRegistry("#/components/schemas/", schemaName)
	r := &Router{API: humachi.New(mux, hc), Mux: mux, Nodes: cfg.Proxy}
	for _, add := range routes {
		add(r)
	}
	return &Server{handler: mux, openAPI: r.OpenAPI()}
}

// schemaName names a type in OpenAPI: those of package model plainly, all others
// with their package before, so that two packages may have a Status each.
func schemaName(t reflect.Type, hint string) string {
	name := huma.DefaultSchemaNamer(t, hint)
	for t.Kind() == reflect.Pointer || t.Kind() == reflect.Slice {
		t = t.Elem()
	}
	if pkg := path.Base(t.PkgPath()); t.Name() != "" && strings.HasPrefix(t.PkgPath(), "roseau/") && pkg != "model" {
		return strings.ToUpper(pkg[:1]) + pkg[1:] + name
	}
	return name
}

// Handler returns the whole API.
func (s *Server) Handler() http.Handler { return s.handler }

// OpenAPI returns the description of the API.
func (s *Server) OpenAPI() *huma.OpenAPI { return s.openAPI }

// AcceptTask is the answer of a change that takes time: 202 and the task.
type AcceptTask struct {
	Status int
	Body   *model.Task
}

// Accepted answers with a task. A task without an id is the answer to a dry run:
// nothing was begun (200), Log and Result say what would be done. DryRun makes
// one.
func Accepted(t *model.Task, err error) (*AcceptTask, error) {
	if err != nil {
		return nil, err
	}
	if t.ID.IsZero() {
		return &AcceptTask{Status: http.StatusOK, Body: t}, nil
	}
	return &AcceptTask{Status: http.StatusAccepted, Body: t}, nil
}

// DryRun is the answer to "what would be done?".
func DryRun(action, result string, steps ...string) *model.Task {
	return &model.Task{Action: action, State: model.TaskDone, Log: steps, Result: result}
}

// Body is an answer with a JSON body.
type Body[T any] struct{ Body T }

// OK answers with v, or with err.
func OK[T any](v T, err error) (*Body[T], error) {
	if err != nil {
		return nil, err
	}
	return &Body[T]{Body: v}, nil
}

// Ref is the input of operations on one object: its name or id.
type Ref struct {
	Ref string `path:"ref" doc:"name or id" maxLength:"63"`
}

// Op describes an operation: Op("create-vm", "POST", "/v1/vms", "Create a VM").
// The tag in OpenAPI is the path's noun.
func Op(id, method, path, summary string) huma.Operation {
	tag := ""
	if len(path) > 4 {
		tag = path[4:]
		for i, c := range tag {
			if c == '/' {
				tag = tag[:i]
				break
			}
		}
	}
	return huma.Operation{OperationID: id, Method: method, Path: path, Summary: summary, Tags: []string{tag},
		MaxBodyBytes: 1 << 20, BodyReadTimeout: 30 * time.Second, RejectUnknownQueryParameters: true}
}

// WriteProblem answers a request outside huma with err.
func WriteProblem(w http.ResponseWriter, err error) {
	p := ProblemOf(err)
	w.Header().Set("Content-Type", p.ContentType(""))
	w.WriteHeader(p.Status)
	json.NewEncoder(w).Encode(p) // the client may be gone: nobody to tell
}

type ctxKey int

const callerKey ctxKey = iota

// Caller is who sent a request.
type Caller struct {
	Local bool // root, on the unix socket
	Peer  pki.Peer
}

// CallerOf returns who sent the request that ctx belongs to.
func CallerOf(ctx context.Context) Caller {
	c, _ := ctx.Value(callerKey).(Caller)
	return c
}

// String names the caller for logs.
func (c Caller) String() string {
	if c.Local {
		return "local"
	}
	return c.Peer.String()
}

// Serve answers requests on l until ctx ends, then lets those under way finish
// for a moment. A TLS listener must demand client certificates.
func Serve(ctx context.Context, l net.Listener, h http.Handler, log *slog.Logger) error {
	srv := &http.Server{
		Handler:           h,
		ReadHeaderTimeout: 10 * time.Second,
		IdleTimeout:       2 * time.Minute,
		BaseContext:       func(net.Listener) context.Context { return context.WithoutCancel(ctx) },
		ConnContext: func(cctx context.Context, c net.Conn) context.Context {
			if _, ok := c.(*tls.Conn); !ok {
				return context.WithValue(cctx, callerKey, Caller{Local: true})
			}
			return cctx
		},
		ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelDebug),
	}
	done := make(chan error, 1)
	go func() { done <- srv.Serve(l) }()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
	}
	sctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
	defer cancel()
	if srv.Shutdown(sctx) != nil {
		srv.Close() // watches and consoles do not end by themselves
	}
	if err := <-done; !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// identify is the first step of every request: who is it? TLS handshakes have
// refused strangers already.
func identify(w http.ResponseWriter, r *http.Request) (*http.Request, bool) {
	if r.TLS == nil {
		return r, true // the unix socket: Serve noted it
	}
	peer, err := pki.PeerOf(*r.TLS)
	if err != nil {
		WriteProblem(w, err)
		return nil, false
	}
	return r.WithContext(context.WithValue(r.Context(), callerKey, Caller{Peer: peer})), true
}

func requestLog(cfg Config) func(http.Handler) http.Handler {
	return func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			r, ok := identify(w, r)
			if !ok {
				return
			}
			start := cfg.Clock.Now()
			sw := &statusWriter{ResponseWriter: w, status: http.StatusOK}
			next.ServeHTTP(sw, r)
			level := slog.LevelInfo
			if r.Method == http.MethodGet || r.Method == http.MethodHead {
				level = slog.LevelDebug
			}
			if sw.status >= 500 {
				level = slog.LevelWarn
			}
			cfg.Log.Log(r.Context(), level, "request", "method", r.Method, "path", r.URL.Path, "status", sw.status,
				"caller", CallerOf(r.Context()).String(), "dur", cfg.Clock.Now().Sub(start))
		})
	}
}

// statusWriter remembers the status; Unwrap lets flush and hijack through.
type statusWriter struct {
	http.ResponseWriter
	status int
}

func (w *statusWriter) WriteHeader(status int) {
	w.status = status
	w.ResponseWriter.WriteHeader(status)
}

func (w *statusWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// Flush passes on what was written, for streams.
func (w *statusWriter) Flush() {
	http.NewResponseController(w.ResponseWriter).Flush()
}

func recoverer(log *slog.Logger) func(http.Handler) http.Handler {
	return func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			defer func() {
				p := recover()
				if p == nil {
					return
				}
				if p == http.ErrAbortHandler {
					panic(p)
				}
				log.Error("request panicked", "method", r.Method, "path", r.URL.Path, "panic", p)
				WriteProblem(w, errors.New("internal error, see the log of the node"))
			}()
			next.ServeHTTP(w, r)
		})
	}
}
