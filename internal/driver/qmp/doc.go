// Package qmp is a client of QEMU's machine protocol on a unix socket.
//
// QEMU serves one client at a time and answers nothing while its main loop is
// blocked, for instance by a `stop` that flushes to a stalled disk. So nothing
// here waits without a context: Run gives up when its context ends (the answer,
// should it come, is dropped), Fire does not wait at all, and events are queued
// without bound so that a slow reader never blocks an answer. Lines have no
// length limit (query-qmp-schema is 200 KiB).
package qmp
