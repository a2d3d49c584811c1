package ctlsock

import (
	"context"
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"roseau/internal/base/errs"
)

type word struct {
	Text string `json:"text"`
}

func TestBothSides(t *testing.T) {
	path := filepath.Join(t.TempDir(), "sub", "s.sock")
	for range 2 { // a predecessor's socket is in the way the second time
		l, err := Listen(path)
		if err != nil {
			t.Fatal(err)
		}
		if fi, err := os.Stat(path); err != nil || fi.Mode().Perm() != 0o600 {
			t.Fatalf("%v, %v", fi, err)
		}
		mux := http.NewServeMux()
		mux.HandleFunc("POST /echo", func(w http.ResponseWriter, r *http.Request) {
			var in word
			err := Decode(w, r, "read word", &in)
			if in.Text == "no" {
				err = errs.New(errs.Conflict, "not now").WithHint("later")
			}
			Reply(w, in, err)
		})
		mux.HandleFunc("GET /slow", func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() })
		mux.HandleFunc("GET /plain", func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "teapot", http.StatusTeapot) })
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- Serve(ctx, l, mux) }()
		talk(t, path)
		cancel()
		if err := <-done; err != nil {
			t.Fatal(err)
		}
	}
	c := New(Client{Socket: path, Who: "it", Hint: "start it"}, false)
	if err := c.Call(t.Context(), "GET", "/echo", nil, nil); !errors.Is(err, errs.Unavailable) || errs.Hint(err) != "start it" {
		t.Errorf("nobody listens: %v", err)
	}
}

func talk(t *testing.T, path string) {
	t.Helper()
	for _, keep := range []bool{false, true} {
		c := New(Client{Socket: path, Who: "it", Limit: 50 * time.Millisecond}, keep)
		var out word
		if err := c.Call(t.Context(), "POST", "/echo", word{"hello"}, &out); err != nil || out.Text != "hello" {
			t.Errorf("%+v, %v", out, err)
		}
		if err := c.Call(t.Context(), "POST", "/echo", nil, nil); err != nil {
			t.Errorf("an empty body: %v", err)
		}
		err := c.Call(t.Context(), "POST", "/echo", word{"no"}, &out)
		if !errors.Is(err, errs.Conflict) || err.Error() != "not now" || errs.Hint(err) != "later" {
			t.Errorf("refusal: %v, %q", err, errs.Hint(err))
		}
		err = c.Call(t.Context(), "POST", "/echo", map[string]int{"number": 7}, &out)
		if !errors.Is(err, errs.Invalid) || !strings.Contains(err.Error(), `read word: json: unknown field "number"`) {
			t.Errorf("unknown field: %v", err)
		}
		if err := c.Call(t.Context(), "GET", "/plain", nil, nil); err == nil || !strings.Contains(err.Error(), "418") {
			t.Errorf("an answer of another kind: %v", err)
		}
		if err := c.Call(t.Context(), "GET", "/slow", nil, nil); !errors.Is(err, errs.Unavailable) {
			t.Errorf("slow: %v", err)
		}
		c.Close()
	}
}
