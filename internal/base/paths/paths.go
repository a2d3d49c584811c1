// Package paths names the files, sockets and ports that the processes of a node
// share. A lab node has its own mount namespace, so the paths are the same there.
package paths

import (
	"os"
	"path/filepath"

	"roseau/internal/base/ids"
)

// root stands before every path. It is empty in production and in lab nodes;
// tests that run several nodes on one machine set ROSEAU_ROOT for each process.
var root = os.Getenv("ROSEAU_ROOT")

// Directories. State survives a reboot; Run does not.
var (
	State = root + "/var/lib/roseau"
	Run   = root + "/run/roseau"
)

// Sockets and files.
var (
	APISocket            = Run + "/api.sock"             // REST, root only
	StorageSocket        = Run + "/storage.sock"         // replication protocol for guards of this node
	StorageControlSocket = Run + "/storage-control.sock" // REST of `roseau storage`, for `roseau node`
	LabInitSocket        = Run + "/init.sock"            // unit control in a lab node, where systemd is absent
	BootID               = Run + "/boot-id"              // boot identity, made at the node's first start
	PKI                  = State + "/pki"                // ca.crt node.crt node.key; voters: ca.key
	NodeConfig           = State + "/node.json"          // identity, name, addresses
	Etcd                 = State + "/etcd"
	Witness              = State + "/witness"      // data of `roseau witness run`, unless told otherwise
	StorageConfig        = State + "/storage.json" // claimed disks of this node
	Uploads              = State + "/uploads"
	DiskCare             = State + "/disk-care.json" // bad blocks and scrub passes of this node's disks
	Evidence             = State + "/evidence"       // blocks of copies that differed
	LabHealth            = State + "/lab-health"     // what a lab says of its disks
	LabMachine           = State + "/lab-machine"    // UUID of a lab's machine, for its firmware's
	LabWatchdog          = State + "/lab-watchdog"   // for /dev/watchdog in a lab node, which must not reset the host
)

// Ports of a node. All speak mutual TLS.
const (
	PortAPI        = 7443
	PortStorage    = 7444
	PortBeat       = 7445
	PortEtcdClient = 7379
	PortEtcdPeer   = 7380
	PortEtcdHTTP   = 7381 // etcd's own health and metrics pages
	// Live migration uses one port of [PortMigrationFirst, PortMigrationLast] a VM.
	PortMigrationFirst = 7460
	PortMigrationLast  = 7499
)

// VMDir is the run directory of a VM's guard: config.json, guard.lock,
// control.sock, qmp.sock, nbd sockets, console.
func VMDir(vm ids.ID) string { return filepath.Join(Run, "vm", vm.String()) }

// VMLock is the lock that the VM's one guard holds.
func VMLock(vm ids.ID) string { return filepath.Join(Run, "vm", vm.String()+".lock") }

// VMControl is the guard's control socket.
func VMControl(vm ids.ID) string { return filepath.Join(VMDir(vm), "control.sock") }

// VolumeDir is the run directory of the writer of a volume without a VM:
// config.json, control.sock, nbd.sock.
func VolumeDir(vol ids.ID) string { return filepath.Join(Run, "volume", vol.String()) }

// VolumeLock is the lock that the volume's one offline writer holds.
func VolumeLock(vol ids.ID) string { return filepath.Join(Run, "volume", vol.String()+".lock") }

// VolumeControl is the offline writer's control socket.
func VolumeControl(vol ids.ID) string { return filepath.Join(VolumeDir(vol), "control.sock") }

// VolumeNBD is where the offline writer serves the volume.
func VolumeNBD(vol ids.ID) string { return filepath.Join(VolumeDir(vol), "nbd.sock") }
