// Package volumectl is how the rest of a node talks to the process that writes a
// volume without a VM (`roseau volumeguard`): the configuration file that the
// node daemon writes before it starts the unit roseau-volume@ID, the status, and
// the client of the control socket. It decides nothing.
//
// Life: the daemon writes config.json (WriteConfig), starts the unit, and watches
// Status. The process releases the volume and exits with 0 on SIGTERM, on
// Release, when a maintenance writer has nothing left to do, and when another
// writer took the volume. Then the daemon removes the directory (Remove).
package volumectl

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"roseau/internal/base/errs"
	"roseau/internal/base/ids"
	"roseau/internal/base/paths"
	"roseau/internal/core/repl"
	"roseau/internal/driver/ctlsock"
	"roseau/internal/model"
)

// Config is paths.VolumeDir(volume)/config.json, mode 0600. Unknown fields are
// refused.
type Config struct {
	Volume     ids.ID       `json:"volume"`
	Name       string       `json:"name"`    // of the volume, for people
	Purpose    repl.Purpose `json:"purpose"` // serve | import | export | maintenance
	Cluster    ids.ID       `json:"cluster"`
	Generation uint32       `json:"generation"` // of the cluster
	Node       ids.ID       `json:"node"`       // this node
	// Socket is where the volume is served; empty means paths.VolumeNBD. Not
	// for maintenance, which serves nobody.
	Socket string `json:"socket,omitempty"`
	// Replace lists disks to be replaced; maintenance only.
	Replace []Replace `json:"replace,omitempty"`
	// Snapshot is the number of the snapshot to be served, read-only; 0: the
	// volume as it is. For serve and export.
	Snapshot uint32 `json:"snapshot,omitempty"`
	// Scrub: the copies are compared before the writer has nothing left to do;
	// maintenance only. It stays for a while then, so that its status can be read.
	Scrub bool `json:"scrub,omitempty"`
	// Merge: it stays until the copies have heard its flush mark, without which
	// they do not merge what deleted snapshots left; maintenance only.
	Merge bool     `json:"merge,omitempty"`
	Nodes []Peer   `json:"nodes"` // all nodes of the cluster, this one included
	Etcd  []string `json:"etcd"`  // client endpoints of all members, "https://10.0.0.1:7379"
}

// Replace names a disk and its successor.
type Replace struct {
	Old  ids.ID `json:"old"`
	New  ids.ID `json:"new,omitzero"`  // zero: Old leaves, its move is cancelled
	Node ids.ID `json:"node,omitzero"` // of New
	// Segments to be moved; empty: all of Old's.
	Segments []uint32 `json:"segments,omitempty"`
	// Live: Old may be in sync; it stays until New is.
	Live bool `json:"live,omitempty"`
}

// Peer is a node of the cluster.
type Peer struct {
	ID        ids.ID                         `json:"id"`
	Name      string                         `json:"name"`
	Addresses map[model.NetworkRole][]string `json:"addresses"` // IPs, best first
}

// Phase is what the process does.
type Phase string

// The phases. Released and Lost are final.
const (
	PhasePreparing Phase = "preparing" // PREPARE is repeated: the last writer's lease runs out, or copies are away
	PhaseTaking    Phase = "taking"
	PhaseServing   Phase = "serving"
	PhaseReleasing Phase = "releasing"
	PhaseReleased  Phase = "released"
	PhaseLost      Phase = "lost" // another writer has the volume
)

// Status is what GET /status answers.
type Status struct {
	Volume  ids.ID       `json:"volume"`
	Node    ids.ID       `json:"node"`
	Purpose repl.Purpose `json:"purpose"`
	Phase   Phase        `json:"phase"`
	Reason  string       `json:"reason,omitempty"` // one line: what it waits for, or why it ended
	Socket  string       `json:"socket,omitempty"`
	// Snapshot is the number of the snapshot that is served; 0: the volume.
	Snapshot uint32             `json:"snapshot,omitempty"`
	State    model.VolumeStatus `json:"state"`
	Disks    []DiskStatus       `json:"disks,omitempty"`
	Waiting  int                `json:"waiting"` // client requests not answered yet
	Scrub    ScrubStatus        `json:"scrub"`
}

// ScrubAction is what to do about the comparison of a volume's copies.
type ScrubAction string

// The actions; ScrubShow changes nothing.
const (
	ScrubShow  ScrubAction = "show"
	ScrubStart ScrubAction = "start"
	ScrubStop  ScrubAction = "stop"
)

// ScrubRequest is the body of POST /scrub, of a volume's writer and of a guard.
type ScrubRequest struct {
	Volume ids.ID      `json:"volume,omitzero"` // of a guard's: which one
	Action ScrubAction `json:"action" enum:"show,start,stop"`
}

// ScrubStatus tells how the comparison goes on, or how the writer's last one went.
type ScrubStatus struct {
	Running  bool `json:"running"`
	Runs     int  `json:"runs"` // ended ones of this writer
	Done     int  `json:"done"` // extents
	Total    int  `json:"total"`
	Skipped  int  `json:"skipped,omitempty"`  // extents of which fewer than two copies answered
	Differ   int  `json:"differ,omitempty"`   // blocks that differed although each copy was sound
	Repaired int  `json:"repaired,omitempty"` // blocks rewritten
	Healing  int  `json:"healing,omitempty"`  // blocks still to be rewritten, of all findings
}

// TailRequest is the body of POST /accept-tail, of a volume's writer and of a guard.
type TailRequest struct {
	Volume ids.ID `json:"volume,omitzero"` // of a guard's: which one
	Accept bool   `json:"accept,omitempty"`
}

// Tail lists the copies that a volume waits to be allowed to go on with, as they were
// before they were accepted.
type Tail struct {
	Doubts []Doubt `json:"doubts"`
}

// Doubt is a copy that may lack what was acknowledged, while nobody answers who could
// tell.
type Doubt struct {
	Disk       ids.ID   `json:"disk"`
	Node       ids.ID   `json:"node"`
	Unverified uint32   `json:"unverified,omitempty"` // records at the end of its log that nothing proves whole
	Damaged    bool     `json:"damaged,omitempty"`    // a durable part of its log is lost
	Missing    []ids.ID `json:"missing,omitempty"`    // disks of in-sync copies that do not answer, or are damaged too
	Segments   int      `json:"segments"`             // that wait for this
}

// DiskStatus is one copy.
type DiskStatus struct {
	Disk      ids.ID        `json:"disk"`
	Node      ids.ID        `json:"node"`
	InSync    bool          `json:"in_sync"`
	Connected bool          `json:"connected"`
	Reason    string        `json:"reason,omitempty"` // why it is out
	Foreign   bool          `json:"foreign,omitempty"`
	Syncing   bool          `json:"syncing,omitempty"`
	SyncDone  uint64        `json:"sync_done,omitempty"`  // objects
	SyncTotal uint64        `json:"sync_total,omitempty"` // objects
	SyncBytes uint64        `json:"sync_bytes,omitempty"`
	SyncLeft  time.Duration `json:"sync_left_ns,omitempty"` // 0: not known
}

// Validate reports the first thing that is wrong.
func (c *Config) Validate() error {
	bad := func(format string, args ...any) error {
		return errs.New(errs.Invalid, "check config of the writer of volume %s: %s", c.Volume, fmt.Sprintf(format, args...))
	}
	switch c.Purpose {
	case repl.PurposeServe, repl.PurposeImport, repl.PurposeExport, repl.PurposeMaintenance:
	default:
		return bad("purpose is %q, want serve, import, export or maintenance", c.Purpose)
	}
	switch {
	case c.Volume.IsZero():
		return bad("volume is empty")
	case c.Node.IsZero():
		return bad("node is empty")
	case len(c.Etcd) == 0:
		return bad("etcd is empty")
	case len(c.Replace) > 0 && c.Purpose != repl.PurposeMaintenance:
		return bad("replace is for maintenance only")
	case c.Snapshot != 0 && c.Purpose != repl.PurposeServe && c.Purpose != repl.PurposeExport:
		return bad("snapshot is for serve and export only")
	case c.Scrub && c.Purpose != repl.PurposeMaintenance:
		return bad("scrub is for maintenance only")
	}
	if c.Merge && c.Purpose != repl.PurposeMaintenance {
		return bad("merge is for maintenance only")
	}
	for _, p := range c.Nodes {
		for role, list := range p.Addresses {
			for _, a := range list {
				if _, err := netip.ParseAddr(a); err != nil {
					return bad("address %q of node %s (%s) is not an IP", a, p.Name, role)
				}
			}
		}
	}
	return nil
}

// ConfigPath is the config file of a volume's writer.
func ConfigPath(vol ids.ID) string { return filepath.Join(paths.VolumeDir(vol), "config.json") }

// WriteConfig checks c and puts it in place atomically.
func WriteConfig(c *Config) error {
	if err := c.Validate(); err != nil {
		return err
	}
	b, err := json.MarshalIndent(c, "", "  ")
	if err != nil {
		return fmt.Errorf("write config of the writer of volume %s: %w", c.Volume, err)
	}
	path := ConfigPath(c.Volume)
	if err := os.MkdirAll(filepath.Dir(path), 0o711); err != nil {
		return err
	}
	tmp := path + ".new"
	if err := os.WriteFile(tmp, append(b, '\n'), 0o600); err != nil {
		return errors.Join(err, os.Remove(tmp))
	}
	return os.Rename(tmp, path)
}

// ReadConfig reads and checks the config of a volume's writer.
func ReadConfig(vol ids.ID) (*Config, error) {
	path := ConfigPath(vol)
	b, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil, errs.New(errs.NotFound, "read %s: %w", path, err).WithHint("the node daemon writes it: use `roseau volume serve`")
	}
	if err != nil {
		return nil, err
	}
	c := new(Config)
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(c); err != nil {
		return nil, errs.New(errs.Invalid, "read %s: %w", path, err)
	}
	if c.Volume != vol {
		return nil, errs.New(errs.Invalid, "read %s: it is for volume %s", path, c.Volume)
	}
	return c, c.Validate()
}

// Remove deletes the run directory, after the unit was stopped.
func Remove(vol ids.ID) error { return os.RemoveAll(paths.VolumeDir(vol)) }

// Client speaks to one writer over its control socket; safe for concurrent use.
type Client struct{ sock *ctlsock.Client }

// Dial returns the client of the writer of vol on this node. It does no I/O.
func Dial(vol ids.ID) *Client { return DialSocket(vol, paths.VolumeControl(vol)) }

// DialSocket is Dial for a control socket elsewhere.
func DialSocket(vol ids.ID, socket string) *Client {
	return &Client{ctlsock.New(ctlsock.Client{Socket: socket, Who: "writer of volume " + vol.String(), Limit: 30 * time.Second}, false)}
}

// Status returns what the writer reports now. errs.Unavailable: it does not run.
func (c *Client) Status(ctx context.Context) (Status, error) {
	var s Status
	return s, c.sock.Call(ctx, http.MethodGet, "/status", nil, &s)
}

// Release asks the writer to drain, flush, release and exit. It returns at once.
func (c *Client) Release(ctx context.Context) error {
	return c.sock.Call(ctx, http.MethodPost, "/release", nil, nil)
}

// Snapshot takes or deletes a snapshot, and returns when it exists (is deleted).
func (c *Client) Snapshot(ctx context.Context, o repl.SnapshotOrder) error {
	return c.sock.Call(ctx, http.MethodPost, "/snapshot", o, nil)
}

// ReplaceDisk starts a rebuild; progress is in Status.Disks.
func (c *Client) ReplaceDisk(ctx context.Context, r Replace) error {
	return c.sock.Call(ctx, http.MethodPost, "/replace-disk", r, nil)
}

// Scrub starts or stops the comparison of the copies, and tells how it is.
func (c *Client) Scrub(ctx context.Context, a ScrubAction) (ScrubStatus, error) {
	var s ScrubStatus
	return s, c.sock.Call(ctx, http.MethodPost, "/scrub", ScrubRequest{Action: a}, &s)
}

// Tail tells what the writer waits to be allowed, and with accept allows it.
func (c *Client) Tail(ctx context.Context, accept bool) (Tail, error) {
	var t Tail
	return t, c.sock.Call(ctx, http.MethodPost, "/accept-tail", TailRequest{Accept: accept}, &t)
}
