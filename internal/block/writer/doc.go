// Package writer decides, for the one process that may write a group of volumes
// (all volumes of a VM, or one volume for an offline purpose), what is sent to
// the replicas, what is answered to the client, and what is changed in etcd.
//
// It is a pure core in the manner of etcd's raft: events go in through Step and
// Tick, and Ready returns what must be done. It has no goroutine, no clock, no
// I/O and no randomness, and the order of everything it returns depends only on
// the events. One thread drives it; package volume is the shell of production,
// the simulator is the other one.
//
// What it promises is the contract C1 to C7 of docs/design/mirror.md:
//
//	acked(w)    => w was written by every member of every set that may be the in-sync set
//	flushed(w)  => and is on stable media there
//	read(b)     => the newest acked write of b, served under the lease of the volume
//
// How to test it: the datadriven scripts in testdata drive one rule each; the
// random schedules in world_test.go check the three lines above.
package writer
