// Package volumectl is how a node's daemon talks to the writer of a volume that
// serves without a VM (`roseau volumeguard ID`, unit roseau-volume@ID): the
// configuration that it writes before it starts the unit, the status that the
// writer reports and the client of its control socket. Nothing here decides
// anything.
//
// Life of a writer: the daemon writes config.json, starts the unit, waits for
// PhaseServing and uses the NBD socket; then it asks for a stop, waits for
// PhaseStopped (drained, flushed, released), stops the unit and removes the
// directory. A maintenance writer serves no NBD, brings the copies that are out
// back in, and stops by itself.
package volumectl

import (
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
	"roseau/internal/base/ids"
	"roseau/internal/base/paths"
	"roseau/internal/core/repl"
	"roseau/internal/driver/guardctl"
	"roseau/internal/model"
)

// Config is Dir(Volume)/config.json, mode 0600. Unknown fields are refused.
type Config struct {
	Volume     ids.ID          `json:"volume"`
	Name       string          `json:"name"`
	Cluster    ids.ID          `json:"cluster"`
	Generation uint32          `json:"generation"`
	Node       ids.ID          `json:"node"`
	NodeName   string          `json:"node_name"`
	Purpose    repl.Purpose    `json:"purpose"` // serve | import | export | maintenance
	Nodes      []guardctl.Peer `json:"nodes"`
	Etcd       []string        `json:"etcd"`
	// Socket is where NBD is served instead of NBDSocket; empty: there.
	Socket string `json:"socket,omitempty"`
}

// Phase is what a writer does.
type Phase string

// The phases. Stopped, Lost and Failed are final: the process answers on its
// control socket, holds no volume, and waits for its unit to be stopped.
const (
	PhaseStarting  Phase = "starting"
	PhasePreparing Phase = "preparing" // another writer's lease runs out, or copies are waited for
	PhaseServing   Phase = "serving"
	PhaseStopping  Phase = "stopping"
	PhaseStopped   Phase = "stopped" // released
	PhaseLost      Phase = "lost"    // another writer took the volume
	PhaseFailed    Phase = "failed"
)

// Final reports whether the writer will do nothing more.
func (p Phase) Final() bool { return p == PhaseStopped || p == PhaseLost || p == PhaseFailed }

// Status is the answer of GET /status.
type Status struct {
	Volume  ids.ID             `json:"volume"`
	Purpose repl.Purpose       `json:"purpose"`
	Phase   Phase              `json:"phase"`
	Reason  string             `json:"reason,omitempty"`
	Socket  string             `json:"socket,omitempty"` // of NBD, while serving
	Live    bool               `json:"live,omitempty"`   // preparing: another writer lives
	Status  model.VolumeStatus `json:"status"`
}

// Dir is the run directory of a volume's writer.
func Dir(vol ids.ID) string { return filepath.Join(paths.Run, "volume", vol.String()) }

// ConfigPath is the configuration of a volume's writer.
func ConfigPath(vol ids.ID) string { return filepath.Join(Dir(vol), "config.json") }

// NBDSocket is where a volume's writer serves NBD; the export's name is empty.
func NBDSocket(vol ids.ID) string { return filepath.Join(Dir(vol), "nbd.sock") }

// ControlSocket is the control socket of a volume's writer.
func ControlSocket(vol ids.ID) string { return filepath.Join(Dir(vol), "control.sock") }

// WriteConfig puts c in place atomically.
func WriteConfig(c *Config) error { return guardctl.WriteFileJSON(ConfigPath(c.Volume), c) }

// ReadConfig reads the configuration of a volume's writer.
func ReadConfig(vol ids.ID) (*Config, error) {
	c := new(Config)
	if err := guardctl.ReadFileJSON(ConfigPath(vol), c); err != nil {
		return nil, err
	}
	if c.Volume != vol {
		return nil, errs.New(errs.Invalid, "read config of volume %s: it is for volume %s", vol, c.Volume)
	}
	return c, nil
}

// Remove deletes the run directory, after the unit was stopped.
func Remove(vol ids.ID) error { return os.RemoveAll(Dir(vol)) }

// Client speaks to one writer over its control socket.
type Client struct {
	vol  ids.ID
	http *http.Client
}

// Dial returns the client of the writer of vol on this node. It does no I/O.
func Dial(vol ids.ID) *Client {
	return &Client{vol: vol, http: &http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "unix", ControlSocket(vol))
		},
	}}}
}

// Status returns what the writer reports. Unavailable: nobody listens.
func (c *Client) Status(ctx context.Context) (Status, error) {
	var s Status
	return s, c.call(ctx, http.MethodGet, "/status", nil, &s)
}

// Stop asks for drain, flush and release, and returns at once.
func (c *Client) Stop(ctx context.Context) error {
	return c.call(ctx, http.MethodPost, "/stop", nil, nil)
}

// ReplaceDisk rebuilds the copies on one disk onto another of the same node.
func (c *Client) ReplaceDisk(ctx context.Context, r guardctl.ReplaceDiskRequest) error {
	return c.call(ctx, http.MethodPost, "/replace-disk", r, nil)
}

func (c *Client) call(ctx context.Context, method, path string, in, out any) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	var body io.Reader
	if in != nil {
		b, err := json.Marshal(in)
		if err != nil {
			return fmt.Errorf("%s %s: %w", method, path, err)
		}
		body = bytes.NewReader(b)
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://writer"+path, body)
	if err != nil {
		return err
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return errs.New(errs.Unavailable, "ask writer of volume %s: %w", c.vol, err)
	}
	defer resp.Body.Close()
	if resp.StatusCode >= 300 {
		return problem(resp)
	}
	if out == nil {
		return nil
	}
	return json.NewDecoder(resp.Body).Decode(out)
}

func problem(resp *http.Response) error {
	var p model.Problem
	if err := json.NewDecoder(io.LimitReader(resp.Body, 1<<16)).Decode(&p); err != nil || p.Text == "" {
		return fmt.Errorf("ask writer: answered %s", resp.Status)
	}
	if kind := errs.ByName(p.Kind); kind != nil {
		return errs.New(kind, "%s", p.Text).WithHint("%s", p.Hint)
	}
	return errors.New(p.Text)
}
