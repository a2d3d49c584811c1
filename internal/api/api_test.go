package api_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"testing"

	"github.com/danielgtaylor/huma/v2"

	"roseau/internal/api"
	"roseau/internal/base/clock"
	"roseau/internal/base/errs"
	"roseau/internal/client"
	"roseau/internal/model"
)

type thingInput struct {
	Body struct {
		Name     string `json:"name" minLength:"1"`
		CPUs     int    `json:"cpus,omitempty" minimum:"1" maximum:"64"`
		Password string `json:"password,omitempty"`
	}
}

// serve runs an API with a few odd operations on a unix socket.
func serve(t *testing.T) (*client.Client, string) {
	t.Helper()
	log := slog.New(slog.DiscardHandler)
	srv := api.New(api.Config{Version: "test", Clock: clock.System{}, Log: log}, func(r *api.Router) {
		huma.Register(r, api.Op("make-thing", http.MethodPost, "/v1/things", "Make a thing"), func(_ context.Context, in *thingInput) (*api.Body[string], error) {
			return api.OK(in.Body.Name, nil)
		})
		huma.Register(r, api.Op("show-thing", http.MethodGet, "/v1/things/{ref}", "Show a thing"), func(ctx context.Context, in *api.Ref) (*api.Body[string], error) {
			if in.Ref == "panic" {
				panic("bug")
			}
			if k := errs.ByName(strings.ReplaceAll(in.Ref, "-", " ")); k != nil {
				return nil, fmt.Errorf("show thing: %w", errs.New(k, "it is %s", in.Ref).WithHint("do %s", in.Ref))
			}
			return api.OK(api.CallerOf(ctx).String(), errors.New("no kind"))
		})
		huma.Register(r, api.Op("watch-things", http.MethodGet, "/v1/things", "Watch"), func(context.Context, *struct{}) (*huma.StreamResponse, error) {
			return api.Stream(func(_ context.Context, write func(any) error) error {
				for i := range 3 {
					if err := write(i); err != nil {
						return err
					}
				}
				return errs.New(errs.Unavailable, "etcd went away")
			}), nil
		})
		huma.Register(r, api.Op("start-thing", http.MethodDelete, "/v1/things/{ref}", "Delete"), func(context.Context, *api.Ref) (*api.AcceptTask, error) {
			return api.Accepted(&model.Task{Meta: model.Meta{ID: [16]byte{1}, Name: "t-1"}}, nil)
		})
	})
	sock := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", sock)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- api.Serve(ctx, l, srv.Handler(), log) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("serve: %v", err)
		}
	})
	c := client.Local(sock)
	t.Cleanup(c.Close)
	return c, sock
}

// TestErrorsSurviveTheWay: kind, text and hint come out of the client as they
// went into the handler.
func TestErrorsSurviveTheWay(t *testing.T) {
	c, _ := serve(t)
	for _, k := range []error{errs.Invalid, errs.NotFound, errs.Conflict, errs.NotLeader, errs.Fenced, errs.Unavailable, errs.Corrupt, errs.Exhausted, errs.Denied} {
		ref := strings.ReplaceAll(k.Error(), " ", "-")
		err := c.Get(t.Context(), "/v1/things/"+ref, nil)
		if !errors.Is(err, k) || err.Error() != "show thing: it is "+ref || errs.Hint(err) != "do "+ref {
			t.Errorf("%v: %v (hint %q)", k, err, errs.Hint(err))
		}
	}
	if err := c.Get(t.Context(), "/v1/things/x", nil); err == nil || errs.Kind(err) != nil {
		t.Errorf("an error without kind: %v", err)
	}
	if err := c.Get(t.Context(), "/v1/things/panic", nil); err == nil || strings.Contains(err.Error(), "bug") {
		t.Errorf("a panic: %v", err)
	}
	if err := c.Get(t.Context(), "/v1/nothing", nil); !errors.Is(err, errs.NotFound) || errs.Hint(err) == "" {
		t.Errorf("unknown path: %v", err)
	}
	if _, err := c.Do(t.Context(), http.MethodPut, "/v1/things", nil, nil); !errors.Is(err, errs.Invalid) {
		t.Errorf("unknown method: %v", err)
	}
}

func TestBadRequestsNameTheField(t *testing.T) {
	c, _ := serve(t)
	for body, words := range map[string]string{
		`{"name":"a","colour":"red"}`: `unknown field "colour"`,
		`{"cpus":1}`:                  "name",
		`{"name":"a","cpus":65}`:      "cpus",
		`{"name":5}`:                  "name",
	} {
		_, err := c.Do(t.Context(), http.MethodPost, "/v1/things", json.RawMessage(body), nil)
		if !errors.Is(err, errs.Invalid) || !strings.Contains(err.Error(), words) {
			t.Errorf("%s: %v, want %q", body, err, words)
		}
	}
	if _, err := c.Do(t.Context(), http.MethodPost, "/v1/things", json.RawMessage(`{"name":"a","password":4711}`), nil); !errors.Is(err, errs.Invalid) ||
		!strings.Contains(err.Error(), "password") || strings.Contains(err.Error(), "4711") {
		t.Errorf("a password of the wrong type: %v", err)
	}
	if err := c.Get(t.Context(), "/v1/things/x?colour=red", nil); !errors.Is(err, errs.Invalid) || !strings.Contains(err.Error(), "colour") {
		t.Errorf("unknown query parameter: %v", err)
	}
}

func TestTasksAndStreams(t *testing.T) {
	c, _ := serve(t)
	task, err := c.Change(t.Context(), http.MethodDelete, "/v1/things/a", nil, nil)
	if err != nil || task == nil || task.Name != "t-1" {
		t.Errorf("task %+v, %v", task, err)
	}
	var name string
	if task, err := c.Change(t.Context(), http.MethodPost, "/v1/things", map[string]string{"name": "a"}, &name); err != nil || task != nil || name != "a" {
		t.Errorf("object %q, task %v, %v", name, task, err)
	}
	lines := 0
	err = c.Stream(t.Context(), http.MethodGet, "/v1/things", nil, func([]byte) error { lines++; return nil })
	if lines != 3 || !errors.Is(err, errs.Unavailable) || err.Error() != "etcd went away" {
		t.Errorf("%d lines, %v", lines, err)
	}
}

func TestOpenAPI(t *testing.T) {
	c, sock := serve(t)
	var doc struct {
		OpenAPI string         `json:"openapi"`
		Paths   map[string]any `json:"paths"`
	}
	if err := c.Get(t.Context(), "/v1/openapi.json", &doc); err != nil || doc.OpenAPI != "3.1.0" || doc.Paths["/v1/things/{ref}"] == nil {
		t.Errorf("%+v, %v", doc, err)
	}
	gone := client.Local(sock + "x")
	if err := gone.Get(t.Context(), "/v1/things/x", nil); !errors.Is(err, errs.Unavailable) || errs.Hint(err) == "" {
		t.Errorf("no node there: %v", err)
	}
}
