// Package cgroup gives the QEMU of a VM a control group of its own: limits that
// touch neither its guard nor a neighbour, a freeze of all its threads at once,
// and a kill that leaves none. Version 2 of the kernel's interface and version 1
// look the same from outside (see docs/design/guard.md):
//
//	v2  the guard's unit has a group that its supervisor delegates. In it stand
//	    "guard", for the guard itself, and "qemu", with the limits.
//	v1  in each hierarchy a group "roseau-vm-ID" below the guard's own.
//
// The package decides nothing about when; it keeps no state but paths, so a
// successor finds by the process (Of) what a predecessor made (Make).
package cgroup
