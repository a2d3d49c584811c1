// Package link writes the messages of one connection between a writer and a
// storage process: batched without a timer, heartbeats first, and without a
// wake-up when the connection is idle.
//
// Whoever makes messages calls Put for each and Flush at the end of its turn.
// Flush writes at once, without blocking, if nothing is being written and there
// is little; the rest, and everything that is large or gathers while a write
// runs, is the goroutine's that runs Run.
package link
