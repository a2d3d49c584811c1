package guardctl

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
	"strconv"
	"time"

	"roseau/internal/base/errs"
	"roseau/internal/base/ids"
	"roseau/internal/base/paths"
	"roseau/internal/core/repl"
	"roseau/internal/model"
)

// Client speaks to one guard over its control socket. It is safe for concurrent
// use; each call opens its own connection, for a guard may be replaced at any
// time.
type Client struct {
	vm     ids.ID
	socket string
	http   *http.Client
}

// Dial returns the client of the guard of vm on this node. It does no I/O.
func Dial(vm ids.ID) *Client { return DialSocket(vm, paths.VMControl(vm)) }

// DialSocket is Dial for a control socket elsewhere.
func DialSocket(vm ids.ID, socket string) *Client {
	c := &Client{vm: vm, socket: socket}
	c.http = &http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "unix", socket)
		},
	}}
	return c
}

// Status returns what the guard reports now. errs.Unavailable: no guard
// listens (it is absent, or just restarting).
func (c *Client) Status(ctx context.Context) (Status, error) {
	var s Status
	return s, c.call(ctx, http.MethodGet, "/status", nil, &s)
}

// Wait returns the first status whose Revision is above after, or the present
// one after 10 s.
func (c *Client) Wait(ctx context.Context, after uint64) (Status, error) {
	var s Status
	return s, c.call(ctx, http.MethodGet, "/status?after="+strconv.FormatUint(after, 10), nil, &s)
}

// Stop asks for a power-off and returns at once; watch Status for PhaseStopped.
func (c *Client) Stop(ctx context.Context, r StopRequest) error {
	return c.call(ctx, http.MethodPost, "/stop", r, nil)
}

// Reset is the reset button.
func (c *Client) Reset(ctx context.Context) error {
	return c.call(ctx, http.MethodPost, "/reset", nil, nil)
}

// Pause adds the pause reason "user".
func (c *Client) Pause(ctx context.Context) error {
	return c.call(ctx, http.MethodPost, "/pause", nil, nil)
}

// Resume takes away the pause reasons "user", "space" and "error".
func (c *Client) Resume(ctx context.Context) error {
	return c.call(ctx, http.MethodPost, "/resume", nil, nil)
}

// Migrate starts a live migration and returns once the destination has
// accepted it; watch Status.Migration.
func (c *Client) Migrate(ctx context.Context, r MigrateRequest) error {
	return c.call(ctx, http.MethodPost, "/migrate", r, nil)
}

// CancelMigration asks for the end of the running migration. It may have
// committed already: watch Status.
func (c *Client) CancelMigration(ctx context.Context) error {
	return c.call(ctx, http.MethodDelete, "/migrate", nil, nil)
}

// Snapshot takes or deletes a snapshot of the VM's volumes, and returns when it
// exists (is deleted).
func (c *Client) Snapshot(ctx context.Context, o repl.SnapshotOrder) error {
	return c.call(ctx, http.MethodPost, "/snapshot", o, nil)
}

// ReplaceDisk starts a rebuild; progress is in Status.Volumes.
func (c *Client) ReplaceDisk(ctx context.Context, r ReplaceDiskRequest) error {
	return c.call(ctx, http.MethodPost, "/replace-disk", r, nil)
}

// Console attaches to the serial console: first the kept log, then the live
// stream. Writes are keystrokes. The caller closes it.
func (c *Client) Console(ctx context.Context) (io.ReadWriteCloser, error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", c.socket)
	if err != nil {
		return nil, c.unavailable("console", err)
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://guard/console", nil)
	if err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	req.Header.Set("Connection", "Upgrade")
	req.Header.Set("Upgrade", "roseau-console")
	if err := req.Write(conn); err != nil {
		return nil, errors.Join(c.unavailable("console", err), conn.Close())
	}
	br := bufio.NewReader(conn)
	resp, err := http.ReadResponse(br, req)
	if err != nil {
		return nil, errors.Join(c.unavailable("console", err), conn.Close())
	}
	if resp.StatusCode != http.StatusSwitchingProtocols {
		return nil, errors.Join(problem(resp), conn.Close())
	}
	return &console{Conn: conn, r: br}, nil
}

type console struct {
	net.Conn
	r *bufio.Reader
}

func (c *console) Read(p []byte) (int, error) { return c.r.Read(p) }

func (c *Client) unavailable(what string, err error) error {
	return errs.New(errs.Unavailable, "%s guard of vm %s: %w", what, c.vm, err).
		WithHint("the guard may be restarting: see `journalctl -u roseau-vm@%s`", c.vm)
}

func (c *Client) call(ctx context.Context, method, path string, in, out any) error {
	if _, ok := ctx.Deadline(); !ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, 30*time.Second)
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
	req, err := http.NewRequestWithContext(ctx, method, "http://guard"+path, body)
	if err != nil {
		return err
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return c.unavailable("ask", err)
	}
	defer resp.Body.Close()
	if resp.StatusCode >= 300 {
		return problem(resp)
	}
	if out == nil {
		return nil
	}
	if err := json.NewDecoder(resp.Body).Decode(out); err != nil {
		return c.unavailable("read answer of", err)
	}
	return nil
}

// problem turns an error answer back into an error of the same kind.
func problem(resp *http.Response) error {
	var p model.Problem
	if err := json.NewDecoder(io.LimitReader(resp.Body, 1<<16)).Decode(&p); err != nil || p.Text == "" {
		return fmt.Errorf("ask guard: answered %s", resp.Status)
	}
	kind := errs.ByName(p.Kind)
	if kind == nil {
		return errors.New(p.Text)
	}
	return errs.New(kind, "%s", p.Text).WithHint("%s", p.Hint)
}
