// Package nbd is a server of the NBD protocol (fixed newstyle) for block devices
// whose engine answers asynchronously.
//
// It negotiates (EXPORT_NAME, GO, INFO, LIST, ABORT, STRUCTURED_REPLY,
// SET_META_CONTEXT, LIST_META_CONTEXT), parses commands in bulk, hands them to a
// Backend in batches, and writes the answers, in the order of completion, in
// batches. It has one reader and one writer goroutine a connection and none a
// request. It decides nothing about the data: durability, order and waiting are
// the backend's.
//
// Invariants: an answer is sent only when the request is complete, so a reply
// never fails half-way; a request that is not a whole number of 4 KiB blocks is
// refused with EINVAL; a stalled backend makes requests wait, never fail; the
// bytes in flight of a connection are bounded, reading stops above the bound.
package nbd
