// Package storage is the process `roseau storage`: the disks of a node, served
// to the guards of the cluster by the replication protocol, and to the node's
// daemon by a control socket.
//
// One goroutine, the loop, owns the replica core and with it every disk engine.
// Around it: for each connection a reader, which decodes into pool memory, and a
// sender, which writes what has gathered with one call; for each disk workers
// that perform its I/O, one of them only for fdatasync. They meet the loop in
// one queue with one wake-up, and the loop wakes senders once the queue is
// drained. So a disk that hangs holds its own workers and nothing else.
//
// Memory of block data is page aligned and off the heap (pool). A buffer has one
// owner at a time: reader, core, disk engine, sender, and back to the pool.
package storage
