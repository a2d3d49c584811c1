// Package labclient is the client of a lab's daemon, for the CLI and for drills:
// power, cables, disks and services of the nodes, and sockets that live in the
// lab's namespaces while their user lives outside.
package labclient

import (
	"os"
	"path/filepath"
	"time"

	"roseau/internal/base/errs"
	"roseau/internal/base/ids"
	"roseau/internal/core/diskcare"
	"roseau/internal/driver/blockdev/faultdisk"
	"roseau/internal/unit"
)

// Files of a lab, under its directory.
const (
	SocketFile  = "lab.sock"     // HTTP, root only
	FDSocket    = "fd.sock"      // sockets out of the lab's namespaces
	SpecFile    = "lab.json"     // Spec
	RecordsFile = "records.json" // what a later `lab up` must clean if the daemon was killed
	DaemonLog   = "daemon.log"
	NodesDir    = "nodes" // NAME/state is the node's /var/lib/roseau, NAME/log its logs
)

// WitnessName is what orders call the witness's machine.
const WitnessName = "witness"

// DefaultName is the lab that commands mean without --name.
const DefaultName = "lab"

// Base returns the directory that holds the labs of this user: $ROSEAU_LAB_DIR,
// else ~/.local/share/roseau/labs.
func Base() (string, error) {
	if dir := os.Getenv("ROSEAU_LAB_DIR"); dir != "" {
		return filepath.Abs(dir)
	}
	home, err := os.UserHomeDir()
	if err != nil {
		return "", errs.New(errs.Invalid, "find the labs' directory: %w", err).WithHint("set ROSEAU_LAB_DIR")
	}
	return filepath.Join(home, ".local", "share", "roseau", "labs"), nil
}

// Dir returns the directory of one lab.
func Dir(name string) (string, error) {
	if !ValidName(name) {
		return "", errs.New(errs.Invalid, "open lab %q: a name has 1 to 20 letters a-z, digits and hyphens", name)
	}
	base, err := Base()
	if err != nil {
		return "", err
	}
	return filepath.Join(base, name), nil
}

// ValidName reports whether name can be a lab's or a node's.
func ValidName(name string) bool {
	if len(name) == 0 || len(name) > 20 {
		return false
	}
	for i, c := range name {
		if !(c >= 'a' && c <= 'z' || c >= '0' && c <= '9' || c == '-' && i > 0) {
			return false
		}
	}
	return true
}

// Machines returns the nodes, and the witness's machine if there is one.
func (s Status) Machines() []Node {
	if s.Witness == nil {
		return s.Nodes
	}
	return append(s.Nodes[:len(s.Nodes):len(s.Nodes)], *s.Witness)
}

// Power is the state of a node's power.
type Power string

// The states of a node's power.
const (
	On     Power = "on"
	Off    Power = "off"
	Frozen Power = "frozen" // on, but no process of it runs
)

// Status is the whole lab.
type Status struct {
	Name    string    `json:"name"`
	Dir     string    `json:"dir"`
	Version string    `json:"version"`
	Since   time.Time `json:"since"`
	PID     int       `json:"pid"` // of the daemon
	Nodes   []Node    `json:"nodes"`
	Witness *Node     `json:"witness,omitempty"` // nil: the lab was made without
	// Partition lists the groups that are apart; nil = none.
	Partition [][]string        `json:"partition,omitempty"`
	Ports     map[string][]Port `json:"ports"` // by switch: cluster, storage, vm
	Ready     bool              `json:"ready"` // every node was powered on
}

// Port is one port of a switch, as recorders see it.
type Port struct {
	Node  string `json:"node"` // or "outside"
	Index int    `json:"index"`
}

// Node is one node.
type Node struct {
	Name      string            `json:"name"`
	Power     Power             `json:"power"`
	InitPID   int               `json:"init_pid,omitempty"` // in the host's numbering; 0 without power
	API       string            `json:"api"`                // forwarded address on 127.0.0.1
	Addresses map[string]string `json:"addresses"`          // by network, without prefix length
	CutLinks  []string          `json:"cut_links,omitempty"`
	Losses    map[string]int    `json:"losses,omitempty"`    // percent of frames that cables lose, by network
	EtcdDown  bool              `json:"etcd_down,omitempty"` // by service stop etcd
	Disks     []Disk            `json:"disks"`
	Units     []unit.Status     `json:"units,omitempty"`
	// GuardNames are the names of the VMs that have a guard here, by VM.
	GuardNames map[ids.ID]string `json:"guard_names,omitempty"`
	// Binary is the roseau that it boots with; empty: the lab's.
	Binary string `json:"binary,omitempty"`
	Boots  int    `json:"boots"`         // since the lab came up
	BMC    *BMC   `json:"bmc,omitempty"` // nil: it has none
}

// BMC is a node's management controller, as it is reached from the nodes.
type BMC struct {
	Address      string `json:"address"`
	User         string `json:"user"`
	PasswordFile string `json:"password_file"` // on the host, for root
	Fingerprint  string `json:"fingerprint"`   // SHA-256 of its certificate
	Cut          bool   `json:"cut,omitempty"` // off the network
}

// Disk is one disk of a node.
type Disk struct {
	Name           string           `json:"name"`
	Path           string           `json:"path"` // in the node
	SizeBytes      int64            `json:"size_bytes"`
	AllocatedBytes int64            `json:"allocated_bytes"`
	Fault          *faultdisk.State `json:"fault,omitempty"` // nil without the fault layer, or without power
	Lamp           bool             `json:"lamp,omitempty"`  // `disk locate` has switched it on
}

// Spec is how a lab is made.
type Spec struct {
	Name          string      `json:"name"`
	Nodes         int         `json:"nodes"`
	DisksPerNode  int         `json:"disks_per_node"`
	DiskSizeBytes int64       `json:"disk_size_bytes"`
	Witness       bool        `json:"witness,omitempty"`   // a machine beside the nodes that votes
	RawDisks      bool        `json:"raw_disks,omitempty"` // without the fault layer, for benchmarks
	Binary        string      `json:"binary"`              // roseau, as the nodes run it
	Units         []unit.Unit `json:"units,omitempty"`     // nil = unit.Templates; tests put trivial ones
	Env           []string    `json:"env,omitempty"`       // for every unit
	Seed          uint64      `json:"seed"`                // of power losses; 0 = drawn and logged
}

// Request is the body of every order. Which fields count depends on the order.
type Request struct {
	Node    string        `json:"node,omitempty"`
	Network string        `json:"network,omitempty"` // "" = all
	Disk    string        `json:"disk,omitempty"`
	Service string        `json:"service,omitempty"` // node, etcd, storage, guard:VM, or a unit
	Path    string        `json:"path,omitempty"`    // of a program on the host; "" = the lab's
	Groups  [][]string    `json:"groups,omitempty"`
	Latency time.Duration `json:"latency_ns,omitempty"`
	Count   int           `json:"count,omitempty"`   // bits to flip
	Percent int           `json:"percent,omitempty"` // of frames that are lost, 0 to 100
	From    int64         `json:"from,omitempty"`
	To      int64         `json:"to,omitempty"`
	Seed    uint64        `json:"seed,omitempty"` // 0 = drawn
	// Health is what the disk says of itself from now on; nil: nothing.
	Health *diskcare.Health `json:"health,omitempty"`
}

// Answer is what an order did.
type Answer struct {
	Losses []DiskLoss       `json:"losses,omitempty"`
	Flips  []faultdisk.Flip `json:"flips,omitempty"`
	Note   string           `json:"note,omitempty"`
	// At is the wall clock at which the order took effect (a cut: the SIGKILL).
	At time.Time `json:"at,omitzero"`
}

// DiskLoss is what a disk lost with its power.
type DiskLoss struct {
	Node string `json:"node"`
	Disk string `json:"disk"`
	faultdisk.Loss
}
