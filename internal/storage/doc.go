// Package storage is the process `roseau storage`: the disks of a node, served
// to the guards of the cluster by the replication protocol, and to the node's
// daemon by a control socket.
//
// The replica core, and with it every disk engine, belongs to whoever has the
// turn. Whoever brings an event and finds nobody at work takes the turn himself;
// the others leave their events to him. So a lone request goes from its socket
// to the disk, and its answer back, without a wake-up: the connection's reader
// even does the disk's I/O itself, and is relieved by another reader if the disk
// keeps it (a disk that hangs must not hold up heartbeats). When many requests
// are under way the turn is left to one goroutine, whose wake-up lets more
// gather: one log write, one system call for many answers.
//
// Around it: for each connection a reader, which decodes into pool memory, and
// package link's sender; for each disk workers that perform its I/O, one of them
// only for fdatasync. A disk that hangs holds its own workers and nothing else.
//
// Memory of block data is page aligned and off the heap (pool). A buffer has one
// owner at a time: reader, core, disk engine, sender, and back to the pool.
package storage
