package guardctl

import (
	"context"
	"io"
	"net/http"
	"strconv"
	"time"

	"roseau/internal/base/ids"
	"roseau/internal/base/paths"
	"roseau/internal/core/repl"
	"roseau/internal/driver/ctlsock"
	"roseau/internal/driver/volumectl"
)

// Client speaks to one guard over its control socket. It is safe for concurrent
// use; each call opens its own connection, for a guard may be replaced at any
// time.
type Client struct{ sock *ctlsock.Client }

// Dial returns the client of the guard of vm on this node. It does no I/O.
func Dial(vm ids.ID) *Client { return DialSocket(vm, paths.VMControl(vm)) }

// DialSocket is Dial for a control socket elsewhere.
func DialSocket(vm ids.ID, socket string) *Client {
	return &Client{ctlsock.New(ctlsock.Client{Socket: socket, Who: "guard of vm " + vm.String(), Limit: 30 * time.Second,
		Hint: "the guard may be restarting: see `journalctl -u roseau-vm@" + vm.String() + "`"}, false)}
}

// Status returns what the guard reports now. errs.Unavailable: no guard
// listens (it is absent, or just restarting).
func (c *Client) Status(ctx context.Context) (Status, error) {
	var s Status
	return s, c.sock.Call(ctx, http.MethodGet, "/status", nil, &s)
}

// Wait returns the first status whose Revision is above after, or the present
// one after 10 s.
func (c *Client) Wait(ctx context.Context, after uint64) (Status, error) {
	var s Status
	return s, c.sock.Call(ctx, http.MethodGet, "/status?after="+strconv.FormatUint(after, 10), nil, &s)
}

// Stop asks for a power-off and returns at once; watch Status for PhaseStopped.
func (c *Client) Stop(ctx context.Context, r StopRequest) error {
	return c.sock.Call(ctx, http.MethodPost, "/stop", r, nil)
}

// Reset is the reset button.
func (c *Client) Reset(ctx context.Context) error {
	return c.sock.Call(ctx, http.MethodPost, "/reset", nil, nil)
}

// Pause adds the pause reason "user".
func (c *Client) Pause(ctx context.Context) error {
	return c.sock.Call(ctx, http.MethodPost, "/pause", nil, nil)
}

// Resume takes away the pause reasons "user", "space" and "error".
func (c *Client) Resume(ctx context.Context) error {
	return c.sock.Call(ctx, http.MethodPost, "/resume", nil, nil)
}

// Migrate starts a live migration and returns once the destination has
// accepted it; watch Status.Migration.
func (c *Client) Migrate(ctx context.Context, r MigrateRequest) error {
	return c.sock.Call(ctx, http.MethodPost, "/migrate", r, nil)
}

// Stay tells the guard that no other node can take the VM: it may go on with one
// copy in spite of a sick storage link.
func (c *Client) Stay(ctx context.Context) error {
	return c.sock.Call(ctx, http.MethodPost, "/stay", nil, nil)
}

// CancelMigration asks for the end of the running migration. It may have
// committed already: watch Status.
func (c *Client) CancelMigration(ctx context.Context) error {
	return c.sock.Call(ctx, http.MethodDelete, "/migrate", nil, nil)
}

// Screenshot returns what the guest shows.
func (c *Client) Screenshot(ctx context.Context) (Screenshot, error) {
	var s Screenshot
	return s, c.sock.Call(ctx, http.MethodGet, "/screenshot", nil, &s)
}

// Snapshot takes or deletes a snapshot of the VM's volumes, and returns when it
// exists (is deleted).
func (c *Client) Snapshot(ctx context.Context, o repl.SnapshotOrder) error {
	return c.sock.Call(ctx, http.MethodPost, "/snapshot", o, nil)
}

// ReplaceDisk starts a rebuild; progress is in Status.Volumes.
func (c *Client) ReplaceDisk(ctx context.Context, r ReplaceDiskRequest) error {
	return c.sock.Call(ctx, http.MethodPost, "/replace-disk", r, nil)
}

// Scrub starts or stops the comparison of a volume's copies, and tells how it is.
func (c *Client) Scrub(ctx context.Context, r volumectl.ScrubRequest) (volumectl.ScrubStatus, error) {
	var s volumectl.ScrubStatus
	return s, c.sock.Call(ctx, http.MethodPost, "/scrub", r, &s)
}

// Console attaches to the serial console: first the kept log, then the live
// stream. Writes are keystrokes. The caller closes it.
func (c *Client) Console(ctx context.Context) (io.ReadWriteCloser, error) {
	return c.sock.Upgrade(ctx, "/console", "roseau-console")
}

// Tail tells what a volume waits to be allowed, and with Accept allows it.
func (c *Client) Tail(ctx context.Context, r volumectl.TailRequest) (volumectl.Tail, error) {
	var t volumectl.Tail
	return t, c.sock.Call(ctx, http.MethodPost, "/accept-tail", r, &t)
}
