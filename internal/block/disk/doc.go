// Package disk is the storage engine of one disk: a write-ahead log, checksummed
// extents and a table of volumes on a raw device or a preallocated file.
//
// It is a deterministic state machine. It has no goroutines, reads no clock and
// does no I/O: calls put work in, Ready hands out I/O actions and completions,
// Done reports a finished action. The storage process performs the actions with
// O_DIRECT, tests and the simulator with package disktest.
//
// What it decides: the order of records (the log order), which epoch may append
// (the promise is checked when a record is appended, in log order), what is
// durable, when the log may be reused, whether a block can be trusted. What it
// does not decide: leases, handles, the live set of a sync target, which disk is
// in sync; package replica does.
//
// Invariants (asserted by the crash tests of this package):
//
//   - A record is acknowledged after it and every record before it in the log
//     was written; a durable request after an fdatasync that began later.
//   - A block is applied in place only after its log record is durable, and the
//     log is reused only after an fdatasync that covers data and image.
//   - A record above the volume's in-sync-set-wide flush mark stays in the log
//     (re-appended without its payload once it is applied), so Window is complete.
//   - Durable parts of the log are never truncated: an unreadable one marks the
//     volumes damaged.
//   - After a failed write or fdatasync nothing is acknowledged any more.
//
// A Core is not safe for concurrent use: one owner calls it. The on-disk format
// is in docs/formats/disk.md, the reasons in docs/design/disk.md.
package disk
