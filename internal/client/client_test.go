package client

import (
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"sync/atomic"
	"testing"
	"time"

	"roseau/internal/base/errs"
)

func clientOf(trusts *httptest.Server, patience time.Duration, bases ...string) *Client {
	c := newClient(trusts.Client().Transport.(*http.Transport), patience)
	c.bases, c.where = bases, "test"
	return c
}

// A forward to a node without power takes the connection and ends it: a change goes
// to the next node. One that was read by a node is not repeated.
func TestChangeGoesToTheNextNode(t *testing.T) {
	var asked atomic.Int32
	good := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked.Add(1)
		body, err := io.ReadAll(r.Body)
		if err != nil || string(body) != `"x"` {
			t.Errorf("body %q, %v", body, err)
		}
		io.WriteString(w, "{}")
	}))
	defer good.Close()
	breaks := httptest.NewTLSServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }))
	defer breaks.Close()
	dead, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer dead.Close()
	go func() {
		for {
			c, err := dead.Accept()
			if err != nil {
				return
			}
			c.Close()
		}
	}()
	c := clientOf(good, patience, "https://"+dead.Addr().String(), good.URL)
	if _, err := c.Change(t.Context(), http.MethodPost, "/v1/x", "x", nil); err != nil || asked.Load() != 1 {
		t.Errorf("through the dead forward: asked %d times, %v", asked.Load(), err)
	}
	c = clientOf(good, patience, breaks.URL, good.URL)
	if _, err := c.Change(t.Context(), http.MethodPost, "/v1/x", "x", nil); !errors.Is(err, errs.Unavailable) || asked.Load() != 1 {
		t.Errorf("a change that a node broke off: asked %d times, %v", asked.Load(), err)
	}
}

// A node whose processes hang takes connections and answers nothing: a reader goes to
// the next node.
func TestReaderLeavesASilentNode(t *testing.T) {
	hung := make(chan struct{})
	silent := httptest.NewTLSServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		select {
		case <-hung:
		case <-r.Context().Done():
		}
	}))
	defer silent.Close()
	defer close(hung)
	good := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, `"here"`) }))
	defer good.Close()
	c := clientOf(good, 100*time.Millisecond, silent.URL, good.URL)
	var got string
	if err := c.Get(t.Context(), "/v1/x", &got); err != nil || got != "here" {
		t.Errorf("%q, %v", got, err)
	}
	if base := c.bases[c.at.Load()]; base != good.URL {
		t.Errorf("goes on with %s", base)
	}
	c = clientOf(good, 50*time.Millisecond, silent.URL, silent.URL)
	if err := c.Get(t.Context(), "/v1/x", &got); !errors.Is(err, errs.Unavailable) {
		t.Errorf("all silent: %v", err)
	}
}
