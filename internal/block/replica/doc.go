// Package replica is the replica side of the replication protocol: what one
// storage process, with several disks and the connections of many guards, may
// promise, grant, append and answer.
//
// It is a deterministic state machine: calls put events in (a connection
// opened, a message came, an action of a disk ended, time passed), Ready hands
// out messages to send, connections to close, and the disks' I/O. It has no
// goroutines, reads no clock and does no I/O. The storage process and the
// simulator drive the same code.
//
// What it decides: who may open a volume on a disk and when (the promise, the
// wait for the last grant, the reservation of a PREPARE), whose lease is
// renewed, what a copy says of its own past (cold, unverified, marks), which
// blocks of a resync still land. What it leaves to package disk: the log, the
// order of records, what is durable, the comparison of an epoch at append.
//
// Invariants, for each (volume, disk):
//
//   - I4 A promise is durable before OPEN_ACK says so, and not before the last
//     grant of the promise in force has run out (L*1.1 after the receipt of the
//     heartbeat that it answered), unless that epoch was released or its holder
//     is proved dead by name. A process that may have forgotten grants (it
//     started less than L*1.1 ago) waits as if it had just given one.
//   - One handle is valid at a time; a promise and a re-OPEN end all older ones.
//   - No grant goes to an epoch below one for which OPEN was received, nor for 2 s
//     to one that a PREPARE found lapsed or stalled.
//   - The boot identity recorded for a run changes only by SYNC_END or a complete
//     CONFIG: a copy that forgot acked writes says so until it is whole again.
//   - I10 Sync data never lands on a block (extent, object, block) that a live
//     write of the same session has changed.
//
// A Core is not safe for concurrent use. The reasons are in docs/design/replica.md.
package replica
