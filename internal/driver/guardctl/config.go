// Package guardctl is how the rest of a node talks to the guard of a VM: the
// configuration file that the node daemon writes before it starts the guard's
// unit, the status that the guard reports, and the client of its control
// socket. The guard itself is internal/guard; nothing here decides anything.
//
// Life of a guard: the daemon writes config.json (WriteConfig), starts the unit
// roseau-vm@ID, and watches Status through the control socket until a final
// phase; then it stops the unit and removes the directory (Remove).
package guardctl

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"

	"roseau/internal/base/errs"
	"roseau/internal/base/ids"
	"roseau/internal/base/paths"
	"roseau/internal/base/size"
	"roseau/internal/model"
)

// Intent says why a guard is started.
type Intent string

// The intents.
const (
	// IntentStart: start the VM from power-on, after a PREPARE that may take as
	// long as the old lease (first start, restart, failover: the same path). A
	// living QEMU of this VM on this node is adopted instead.
	IntentStart Intent = "start"
	// IntentIncoming: receive the VM from Config.Source by live migration.
	IntentIncoming Intent = "incoming"
)

// Config is paths.VMDir(VM)/config.json, everything that a guard needs. It is
// written by the node daemon, mode 0600. Unknown fields are refused.
type Config struct {
	VM   ids.ID `json:"vm"`
	Name string `json:"name"` // of the VM, for people

	Cluster    ids.ID `json:"cluster"`
	Generation uint32 `json:"generation"` // cluster generation
	Node       ids.ID `json:"node"`       // this node
	NodeName   string `json:"node_name"`

	// Attempt is the placement's attempt that named this node. A guard that ended
	// for good under an attempt does nothing until it gets a larger one. 1 and up.
	Attempt uint64 `json:"attempt"`
	Intent  Intent `json:"intent"`
	// Source is the node that the VM comes from; with IntentIncoming only.
	Source ids.ID `json:"source,omitzero"`
	// Run is the guest's memory lineage at the source (Status.Run of its guard);
	// with IntentIncoming only.
	Run ids.ID `json:"run,omitzero"`
	// MigrationPort is where this guard listens as a destination; 0: the first
	// free one of paths.PortMigrationFirst to PortMigrationLast (see
	// Status.Incoming).
	MigrationPort int `json:"migration_port,omitempty"`

	CPUs     int        `json:"cpus"` // 1 to 64
	Memory   size.Bytes `json:"memory"`
	Accel    string     `json:"accel"`               // auto | kvm | tcg; empty = auto
	CPUModel string     `json:"cpu_model,omitempty"` // empty: CommonCPU under KVM, else the accelerator's default
	// CommonCPU is the model that all nodes with KVM have; empty: none, or not known.
	CommonCPU string `json:"common_cpu,omitempty"`

	// State is the VM's state volume, taken with the disks, never shown to the
	// guest. Zero only for a VM that has disks.
	State ids.ID `json:"state_volume,omitzero"`
	Disks []Disk `json:"disks,omitempty"` // boot order
	NICs  []NIC  `json:"nics,omitempty"`

	Nodes []Peer `json:"nodes"` // all nodes of the cluster, this one included
	// Etcd lists client endpoints of all members, "https://10.0.0.1:7379". The
	// guard has a client of its own: etcd is never reached through the daemon.
	Etcd []string `json:"etcd"`
}

// Disk is a volume that the guest sees as a virtio disk.
type Disk struct {
	Volume ids.ID     `json:"volume"`
	Name   string     `json:"name"`
	Size   size.Bytes `json:"size"`
}

// NIC is a virtio network interface plugged into a bridged network.
type NIC struct {
	Network ids.ID `json:"network"`
	Name    string `json:"name"` // of the network
	// Uplink is the node's interface that the network's bridge enslaves, e.g.
	// "vm0". Empty: an isolated bridge.
	Uplink           string `json:"uplink,omitempty"`
	MAC              string `json:"mac"`
	AllowMACSpoofing bool   `json:"allow_mac_spoofing,omitempty"`
}

// Peer is a node of the cluster as a guard needs it.
type Peer struct {
	ID        ids.ID                         `json:"id"`
	Name      string                         `json:"name"`
	Addresses map[model.NetworkRole][]string `json:"addresses"` // IPs, best first
}

// Volumes lists the volumes of the VM, the state volume first.
func (c *Config) Volumes() []ids.ID {
	var v []ids.ID
	if !c.State.IsZero() {
		v = append(v, c.State)
	}
	for _, d := range c.Disks {
		v = append(v, d.Volume)
	}
	return v
}

// Peer returns the node with that id.
func (c *Config) Peer(id ids.ID) (Peer, bool) {
	for _, p := range c.Nodes {
		if p.ID == id {
			return p, true
		}
	}
	return Peer{}, false
}

// Validate reports the first thing that is wrong.
func (c *Config) Validate() error {
	bad := func(format string, args ...any) error {
		return errs.New(errs.Invalid, "check guard config of vm %s: %s", c.VM, fmt.Sprintf(format, args...))
	}
	switch {
	case c.VM.IsZero():
		return bad("vm is empty")
	case c.Node.IsZero():
		return bad("node is empty")
	case c.Attempt == 0:
		return bad("attempt is 0")
	case c.CPUs < 1 || c.CPUs > 64:
		return bad("cpus is %d, want 1 to 64", c.CPUs)
	case c.Memory < 32*size.MiB || c.Memory%size.MiB != 0:
		return bad("memory is %s, want at least 32MiB in whole MiB", c.Memory)
	case len(c.Volumes()) == 0:
		return bad("no volume: without one there is no lease and no right to run")
	case len(c.Volumes()) > 32:
		return bad("%d volumes, at most 32 go into one transaction", len(c.Volumes()))
	case c.Intent != IntentStart && c.Intent != IntentIncoming:
		return bad("intent is %q, want start or incoming", c.Intent)
	case c.Intent == IntentIncoming && (c.Source.IsZero() || c.Run.IsZero()):
		return bad("intent is incoming, and source or run is empty")
	}
	switch c.Accel {
	case "", "auto", "kvm", "tcg":
	default:
		return bad("accel is %q, want auto, kvm or tcg", c.Accel)
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
	seen := map[ids.ID]bool{}
	for _, v := range c.Volumes() {
		if v.IsZero() || seen[v] {
			return bad("volume %q is empty or listed twice", v)
		}
		seen[v] = true
	}
	return nil
}

// ConfigPath is the config file of a VM's guard.
func ConfigPath(vm ids.ID) string { return filepath.Join(paths.VMDir(vm), "config.json") }

// WriteConfig checks c and puts it in place atomically.
func WriteConfig(c *Config) error {
	if err := c.Validate(); err != nil {
		return err
	}
	return WriteFileJSON(ConfigPath(c.VM), c)
}

// ReadConfig reads and checks the config of a VM's guard.
func ReadConfig(vm ids.ID) (*Config, error) {
	c := new(Config)
	if err := ReadFileJSON(ConfigPath(vm), c); err != nil {
		return nil, err
	}
	if c.VM != vm {
		return nil, errs.New(errs.Invalid, "read guard config of vm %s: it is for vm %s", vm, c.VM)
	}
	return c, c.Validate()
}

// Remove deletes a VM's run directory: after its guard's unit was stopped in a
// final phase.
func Remove(vm ids.ID) error { return os.RemoveAll(paths.VMDir(vm)) }

// WriteFileJSON writes v to path by way of a temporary file, mode 0600, making
// the directory (0711: QEMU's user passes through it to its sockets).
func WriteFileJSON(path string, v any) error {
	b, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o711); err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(path), ".new-*")
	if err != nil {
		return err
	}
	_, err = f.Write(append(b, '\n'))
	err = errors.Join(err, f.Close())
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	return nil
}

// ReadFileJSON reads one JSON value and refuses unknown fields.
func ReadFileJSON(path string, v any) error {
	f, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		return errs.New(errs.NotFound, "read %s: %w", path, err)
	}
	if err != nil {
		return err
	}
	defer f.Close()
	d := json.NewDecoder(f)
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		return errs.New(errs.Invalid, "read %s: %w", path, err)
	}
	return nil
}
