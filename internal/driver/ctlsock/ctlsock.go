// Package ctlsock is both sides of a process' control socket: JSON over HTTP on a
// unix socket that root alone may open. An error crosses it with its kind and its
// hint. It knows nothing of who talks about what.
package ctlsock

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"roseau/internal/base/errs"
	"roseau/internal/model"
)

// Bounds.
const (
	maxRequest = 64 << 10 // bytes of a body
	maxAnswer  = 16 << 20
	// headTime bounds the head of a request.
	headTime = 10 * time.Second
)

// Client speaks to one socket; safe for concurrent use. Every field but Socket
// may be zero.
type Client struct {
	Socket string
	Who    string        // for errors: "guard of vm …"
	Hint   string        // what to do when nobody listens
	Limit  time.Duration // of a call whose context has none; 0: none
	http   *http.Client
}

// New makes the client ready; it does no I/O. With keep connections are used
// again; without, each call opens its own, for a process that may be replaced at
// any time.
func New(c Client, keep bool) *Client {
	c.http = &http.Client{Transport: &http.Transport{DisableKeepAlives: !keep, MaxIdleConns: 2,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) { return dial(ctx, c.Socket) }}}
	return &c
}

func dial(ctx context.Context, socket string) (net.Conn, error) {
	var d net.Dialer
	return d.DialContext(ctx, "unix", socket)
}

// Close releases idle connections.
func (c *Client) Close() { c.http.CloseIdleConnections() }

func (c *Client) unavailable(err error) error {
	e := errs.New(errs.Unavailable, "ask %s: %w", c.Who, err)
	if c.Hint != "" {
		return e.WithHint("%s", c.Hint)
	}
	return e
}

// Call does one request: in is the body if not nil, out takes the answer's if not
// nil. errs.Unavailable: nobody listens, or the answer broke off.
func (c *Client) Call(ctx context.Context, method, path string, in, out any) error {
	if _, ok := ctx.Deadline(); !ok && c.Limit > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, c.Limit)
		defer cancel()
	}
	var body io.Reader
	if in != nil {
		b, err := json.Marshal(in)
		if err != nil {
			return fmt.Errorf("%s %s: %w", method, path, err)
		}
		body = bytes.NewReader(b)
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://socket"+path, body)
	if err != nil {
		return err
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return c.unavailable(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil {
		return c.unavailable(err)
	}
	if resp.StatusCode/100 != 2 {
		return c.problem(resp.Status, b)
	}
	if out == nil || len(b) == 0 {
		return nil
	}
	if err := json.Unmarshal(b, out); err != nil {
		return fmt.Errorf("ask %s: read its answer: %w", c.Who, err)
	}
	return nil
}

// problem turns an error answer back into an error of the same kind.
func (c *Client) problem(status string, body []byte) error {
	var p model.Problem
	if json.Unmarshal(body, &p) != nil || p.Text == "" {
		return fmt.Errorf("ask %s: it answered %s", c.Who, status)
	}
	kind := errs.ByName(p.Kind)
	if kind == nil {
		return errors.New(p.Text)
	}
	e := errs.New(kind, "%s", p.Text)
	if p.Hint != "" {
		return e.WithHint("%s", p.Hint)
	}
	return e
}

// Upgrade turns a connection into a stream of another protocol. The caller
// closes it.
func (c *Client) Upgrade(ctx context.Context, path, protocol string) (io.ReadWriteCloser, error) {
	conn, err := dial(ctx, c.Socket)
	if err != nil {
		return nil, c.unavailable(err)
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://socket"+path, nil)
	if err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	req.Header.Set("Connection", "Upgrade")
	req.Header.Set("Upgrade", protocol)
	if err := req.Write(conn); err != nil {
		return nil, errors.Join(c.unavailable(err), conn.Close())
	}
	br := bufio.NewReader(conn)
	resp, err := http.ReadResponse(br, req)
	if err != nil {
		return nil, errors.Join(c.unavailable(err), conn.Close())
	}
	if resp.StatusCode != http.StatusSwitchingProtocols {
		b, err := io.ReadAll(io.LimitReader(resp.Body, maxRequest))
		return nil, errors.Join(c.problem(resp.Status, b), err, conn.Close())
	}
	return &upgraded{Conn: conn, r: br}, nil
}

// upgraded reads first what came along with the answer's head.
type upgraded struct {
	net.Conn
	r *bufio.Reader
}

func (u *upgraded) Read(p []byte) (int, error) { return u.r.Read(p) }

// Listen listens on a socket that root alone may open; what a predecessor left
// there is removed.
func Listen(path string) (net.Listener, error) {
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

// Serve answers on l until ctx ends, then closes l and every connection. Its end
// with ctx is no error.
func Serve(ctx context.Context, l net.Listener, h http.Handler) error {
	srv := &http.Server{Handler: h, ReadHeaderTimeout: headTime}
	defer context.AfterFunc(ctx, func() { srv.Close() })()
	if err := srv.Serve(l); err != nil && ctx.Err() == nil {
		return fmt.Errorf("serve control socket: %w", err)
	}
	return nil
}

// Decode reads the one JSON value of a request's body; an empty body is the zero
// value. what begins the error: "read order".
func Decode(w http.ResponseWriter, r *http.Request, what string, v any) error {
	d := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxRequest))
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil && !errors.Is(err, io.EOF) {
		return errs.New(errs.Invalid, "%s: %w", what, err)
	}
	return nil
}

// Reply sends a value, or the error.
func Reply(w http.ResponseWriter, v any, err error) {
	if err != nil {
		Refuse(w, err)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(v) // the client may be gone
}

// Refuse sends an error with its kind and hint.
func Refuse(w http.ResponseWriter, err error) {
	kind, code := "internal", http.StatusInternalServerError
	if k := errs.Kind(err); k != nil {
		kind, code = k.Error(), http.StatusConflict
	}
	w.Header().Set("Content-Type", "application/problem+json")
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(model.Problem{Kind: kind, Text: err.Error(), Hint: errs.Hint(err)}) // the client may be gone
}
