// Package storagectl is the control interface of `roseau storage`: the types of
// its REST on paths.StorageControlSocket, and a client for the node's daemon.
// The socket is root's alone; there is no authentication beyond that.
package storagectl

import (
	"context"
	"encoding/json"
	"net/http"
	"time"

	"roseau/internal/base/ids"
	"roseau/internal/base/size"
	"roseau/internal/core/repl"
	"roseau/internal/driver/blockdev"
	"roseau/internal/driver/ctlsock"
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

// Care is what the process knows of the state of a claimed disk's blocks: GET
// /care.
type Care struct {
	Disk          ids.ID   `json:"disk"`
	BadBlocks     int      `json:"bad_blocks"`                // distinct ones in the last 24 h
	RetirePropose bool     `json:"retire_proposed,omitempty"` // more than are believed to be chance
	Repaired      uint64   `json:"repaired"`                  // blocks rewritten from other copies, ever
	Metadata      uint64   `json:"metadata"`                  // bad metadata written again, ever
	Damage        []Damage `json:"damage,omitempty"`          // known and not repaired yet
	Scrub         Scrub    `json:"scrub"`
	// Of the last whole window of 10 s:
	WriteMedian time.Duration `json:"write_median_ns"`
	Writes      int           `json:"writes"`
}

// Damage is how many blocks of a volume are known to be bad on a disk.
type Damage struct {
	Volume ids.ID `json:"volume"`
	Blocks int    `json:"blocks"`
}

// Scrub is the pass over a disk that runs, or the last one.
type Scrub struct {
	Running     bool      `json:"running"`
	DutyPercent int       `json:"duty_percent,omitempty"`
	Started     time.Time `json:"started,omitzero"`
	Ended       time.Time `json:"ended,omitzero"` // of the last pass that saw the whole disk; zero: none
	Extents     int       `json:"extents"`        // looked at
	Total       int       `json:"total"`
	Bytes       int64     `json:"bytes"`
	BadBlocks   int       `json:"bad_blocks"`
	BadMetadata int       `json:"bad_metadata"`
}

// ScrubRequest is the body of POST /scrub.
type ScrubRequest struct {
	Disk        ids.ID `json:"disk"`
	Stop        bool   `json:"stop,omitempty"`         // where it is; a later start goes on there
	DutyPercent int    `json:"duty_percent,omitempty"` // share of the time, 1 to 100; 0 = 5
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
	// Keep names disks of the cluster that are not to be wiped, wherever they stand.
	Keep []ids.ID `json:"keep,omitempty"`
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
	// MergeStuck: objects of deleted snapshots wait for a writer's word.
	MergeStuck bool `json:"merge_stuck,omitempty"`
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

// Client talks to the storage process of this node.
type Client struct{ sock *ctlsock.Client }

// New returns a client of the socket at path.
func New(path string) *Client {
	return &Client{ctlsock.New(ctlsock.Client{Socket: path, Who: "the storage process",
		Hint: "is it running? `systemctl status roseau-storage`"}, true)}
}

// Devices lists every disk of the node, claimed ones included, also if missing.
func (c *Client) Devices(ctx context.Context) ([]Device, error) {
	var list []Device
	return list, c.sock.Call(ctx, http.MethodGet, "/devices", nil, &list)
}

// Claim formats a blank disk for the cluster and opens it. Conflict if it is not
// blank; a disk that is claimed already is returned as it is.
func (c *Client) Claim(ctx context.Context, r ClaimRequest) (Device, error) {
	var d Device
	return d, c.sock.Call(ctx, http.MethodPost, "/claim", r, &d)
}

// Wipe destroys what is on a disk that is not in use, and not claimed, or failed. The
// disks named keep are not wiped.
func (c *Client) Wipe(ctx context.Context, path string, keep ...ids.ID) error {
	return c.sock.Call(ctx, http.MethodPost, "/wipe", WipeRequest{path, path, keep}, nil)
}

// Release gives a claimed disk back for good: it is closed, forgotten and wiped
// if it can be. The caller has made sure that no volume needs it.
func (c *Client) Release(ctx context.Context, disk ids.ID) error {
	return c.sock.Call(ctx, http.MethodPost, "/release", DiskRequest{disk}, nil)
}

// Retry opens a claimed disk that failed again.
func (c *Client) Retry(ctx context.Context, disk ids.ID) error {
	return c.sock.Call(ctx, http.MethodPost, "/retry", DiskRequest{disk}, nil)
}

// Status tells how the process and its disks are.
func (c *Client) Status(ctx context.Context) (Status, error) {
	var s Status
	return s, c.sock.Call(ctx, http.MethodGet, "/status", nil, &s)
}

// Care tells what is known of the blocks of the claimed disks.
func (c *Client) Care(ctx context.Context) ([]Care, error) {
	var list []Care
	return list, c.sock.Call(ctx, http.MethodGet, "/care", nil, &list)
}

// Scrub starts or stops a pass over a disk; a running one takes the new duty.
func (c *Client) Scrub(ctx context.Context, r ScrubRequest) error {
	return c.sock.Call(ctx, http.MethodPost, "/scrub", r, nil)
}

// Copies lists what the disks hold of volumes.
func (c *Client) Copies(ctx context.Context) ([]Copy, error) {
	var list []Copy
	return list, c.sock.Call(ctx, http.MethodGet, "/copies", nil, &list)
}

// DropStray frees a copy, as Copies told it, of a volume whose records do not name
// the disk; they were read after Copies. Unavailable: it changed since.
func (c *Client) DropStray(ctx context.Context, seen Copy) error {
	return c.sock.Call(ctx, http.MethodPost, "/drop-stray", seen, nil)
}

// SetLimits says how much guests may use. Disks that are not there are passed
// over; a storage process that has just started has no limits.
func (c *Client) SetLimits(ctx context.Context, r LimitsRequest) error {
	return c.sock.Call(ctx, http.MethodPost, "/limits", r, nil)
}

// DeleteVolume frees every extent of a volume on the given disks.
func (c *Client) DeleteVolume(ctx context.Context, r DeleteRequest) error {
	return c.sock.Call(ctx, http.MethodPost, "/delete-volume", r, nil)
}
