// Package storagectl is the control interface of `roseau storage`: the types of
// its REST on paths.StorageControlSocket, and a client for the node's daemon.
// The socket is root's alone; there is no authentication beyond that.
package storagectl

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"

	"roseau/internal/base/errs"
	"roseau/internal/base/ids"
	"roseau/internal/base/size"
	"roseau/internal/core/repl"
	"roseau/internal/driver/blockdev"
	"roseau/internal/model"
)

// Device is a disk of the node: claimed (ID is set) or not.
type Device struct {
	Path    string          `json:"path"`
	Model   string          `json:"model,omitempty"`
	Serial  string          `json:"serial,omitempty"`
	Size    size.Bytes      `json:"size"`
	State   model.DiskState `json:"state"`
	Content string          `json:"content,omitempty"` // what stands against claiming it
	// Found has the same in detail; nil for claimed disks.
	Found *blockdev.Device `json:"found,omitempty"`

	// Of claimed disks:
	ID     ids.ID     `json:"id,omitzero"`
	Data   size.Bytes `json:"data,omitempty"` // bytes of extents that it can hold
	Used   size.Bytes `json:"used,omitempty"`
	Errors int64      `json:"errors,omitempty"` // blocks that could not be read or verified
	Reason string     `json:"reason,omitempty"` // why it is failed or missing
}

// Status is the answer of GET /status.
type Status struct {
	Node    ids.ID       `json:"node"`
	Session ids.ID       `json:"session"`
	Boot    ids.ID       `json:"boot"`
	Guards  int          `json:"guards"` // connections
	Pool    size.Bytes   `json:"pool"`   // buffer memory in use
	Disks   []DiskStatus `json:"disks"`
}

// DiskStatus tells more of a claimed disk than Device.
type DiskStatus struct {
	Device
	Volumes    int     `json:"volumes"`
	Open       int     `json:"open"` // volumes with a valid handle
	ProbeAgeMS int64   `json:"probe_age_ms"`
	Slots      int     `json:"slots"`
	FreeSlots  int     `json:"free_slots"`
	RingUsed   float64 `json:"ring_used"` // 0 to 1
	Batches    uint64  `json:"batches"`
	Syncs      uint64  `json:"syncs"`
}

// ClaimRequest is the body of POST /claim.
type ClaimRequest struct {
	Path string `json:"path"`
	// WipeName is Path again if what is on the disk is to be destroyed.
	WipeName string `json:"wipe_name,omitempty"`
	// SizeBytes of a file that does not exist yet; 0: it must exist.
	SizeBytes int64 `json:"size_bytes,omitempty"`
	// WALBytes of the log; 0: chosen by the size of the disk.
	WALBytes int64 `json:"wal_bytes,omitempty"`
}

// WipeRequest is the body of POST /wipe. Confirm is Path again.
type WipeRequest struct {
	Path    string `json:"path"`
	Confirm string `json:"confirm"`
}

// DiskRequest is the body of POST /release and POST /retry.
type DiskRequest struct {
	Disk ids.ID `json:"disk"`
}

// Copy is what a disk holds of a volume.
type Copy struct {
	Disk       ids.ID       `json:"disk"`
	Volume     ids.ID       `json:"volume"`
	Promise    repl.Promise `json:"promise"`
	CfgVersion uint32       `json:"cfg_version"` // newest that it was told
	Max        repl.Mark    `json:"max"`         // newest record
	Extents    int          `json:"extents"`     // allocated
}

// LimitsRequest is the body of POST /limits: how many bytes guests may use of each
// disk; the rest is kept for repairs.
type LimitsRequest struct {
	Bytes map[ids.ID]int64 `json:"bytes"`
}

// DeleteRequest is the body of POST /delete-volume. Record is the positive
// record of the deletion as it was read from etcd: without it nothing is freed.
type DeleteRequest struct {
	Volume ids.ID          `json:"volume"`
	Disks  []ids.ID        `json:"disks"`
	Record json.RawMessage `json:"record"`
}

// Problem is the body of an answer that is not 200.
type Problem struct {
	Kind string `json:"kind"`
	Text string `json:"error"`
	Hint string `json:"hint,omitempty"`
}

// Client talks to the storage process of this node.
type Client struct{ http http.Client }

// New returns a client of the socket at path.
func New(path string) *Client {
	return &Client{http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", path)
		},
		MaxIdleConns: 2,
	}}}
}

func (c *Client) do(ctx context.Context, method, path string, in, out any) error {
	var body io.Reader
	if in != nil {
		b, err := json.Marshal(in)
		if err != nil {
			return err
		}
		body = bytes.NewReader(b)
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://storage"+path, body)
	if err != nil {
		return err
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return errs.New(errs.Unavailable, "ask the storage process: %w", err).
			WithHint("is it running? `systemctl status roseau-storage`")
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, 16<<20))
	if err != nil {
		return errs.New(errs.Unavailable, "ask the storage process: %w", err)
	}
	if resp.StatusCode != http.StatusOK {
		var p Problem
		if json.Unmarshal(b, &p) != nil || p.Text == "" {
			return fmt.Errorf("ask the storage process: %s", resp.Status)
		}
		kind := errs.ByName(p.Kind)
		if kind == nil {
			return fmt.Errorf("%s", p.Text)
		}
		return errs.New(kind, "%s", p.Text).WithHint("%s", p.Hint)
	}
	if out == nil {
		return nil
	}
	return json.Unmarshal(b, out)
}

// Devices lists every disk of the node, claimed ones included, also if missing.
func (c *Client) Devices(ctx context.Context) ([]Device, error) {
	var list []Device
	return list, c.do(ctx, http.MethodGet, "/devices", nil, &list)
}

// Claim formats a blank disk for the cluster and opens it. Conflict if it is not
// blank; a disk that is claimed already is returned as it is.
func (c *Client) Claim(ctx context.Context, r ClaimRequest) (Device, error) {
	var d Device
	return d, c.do(ctx, http.MethodPost, "/claim", r, &d)
}

// Wipe destroys what is on a disk that is neither claimed nor in use.
func (c *Client) Wipe(ctx context.Context, path string) error {
	return c.do(ctx, http.MethodPost, "/wipe", WipeRequest{path, path}, nil)
}

// Release gives a claimed disk back for good: it is closed, forgotten and wiped
// if it can be. The caller has made sure that no volume needs it.
func (c *Client) Release(ctx context.Context, disk ids.ID) error {
	return c.do(ctx, http.MethodPost, "/release", DiskRequest{disk}, nil)
}

// Retry opens a claimed disk that failed again.
func (c *Client) Retry(ctx context.Context, disk ids.ID) error {
	return c.do(ctx, http.MethodPost, "/retry", DiskRequest{disk}, nil)
}

// Status tells how the process and its disks are.
func (c *Client) Status(ctx context.Context) (Status, error) {
	var s Status
	return s, c.do(ctx, http.MethodGet, "/status", nil, &s)
}

// Copies lists what the disks hold of volumes.
func (c *Client) Copies(ctx context.Context) ([]Copy, error) {
	var list []Copy
	return list, c.do(ctx, http.MethodGet, "/copies", nil, &list)
}

// DropStray frees a copy, as Copies told it, of a volume whose records do not name
// the disk; they were read after Copies. Unavailable: it changed since.
func (c *Client) DropStray(ctx context.Context, seen Copy) error {
	return c.do(ctx, http.MethodPost, "/drop-stray", seen, nil)
}

// SetLimits says how much guests may use. Disks that are not there are passed
// over; a storage process that has just started has no limits.
func (c *Client) SetLimits(ctx context.Context, r LimitsRequest) error {
	return c.do(ctx, http.MethodPost, "/limits", r, nil)
}

// DeleteVolume frees every extent of a volume on the given disks.
func (c *Client) DeleteVolume(ctx context.Context, r DeleteRequest) error {
	return c.do(ctx, http.MethodPost, "/delete-volume", r, nil)
}
