package api_test

import (
	"bytes"
	"context"
	"encoding/json"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/danielgtaylor/huma/v2"

	"roseau/internal/api"
	"roseau/internal/base/clock"
	"roseau/internal/model"
)

// FuzzBody sends any body to an operation whose input is a VM as users write it:
// it is taken, or refused with a reason; never a panic, never an internal error.
func FuzzBody(f *testing.F) {
	type input struct {
		Body model.VM
	}
	srv := api.New(api.Config{Version: "test", Clock: clock.System{}, Log: slog.New(slog.DiscardHandler)}, func(r *api.Router) {
		huma.Register(r, api.Op("make-vm", http.MethodPost, "/v1/vms", "Make a VM"), func(_ context.Context, in *input) (*api.Body[model.VM], error) {
			if err := in.Body.Validate(); err != nil {
				return nil, err
			}
			return api.OK(in.Body, nil)
		})
	})
	f.Add([]byte(`{"name":"web1","spec":{"cpus":2,"memory":"2GiB","disks":[{"volume":"web1-root"}],"nics":[{"network":"lan"}]}}`))
	f.Add([]byte(`{"name":"","spec":{"cpus":-1,"memory":"many"}}`))
	f.Add([]byte(`{"name":7}`))
	f.Add([]byte(`[[[[`))
	h := srv.Handler()
	f.Fuzz(func(t *testing.T, body []byte) {
		r := httptest.NewRequest(http.MethodPost, "/v1/vms", bytes.NewReader(body))
		r.Header.Set("Content-Type", "application/json")
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		if w.Code >= 500 {
			t.Fatalf("%d: %s", w.Code, w.Body)
		}
		if w.Code >= 400 && !json.Valid(w.Body.Bytes()) {
			t.Fatalf("%d without a problem: %s", w.Code, w.Body)
		}
	})
}
