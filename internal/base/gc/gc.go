// Package gc sets how often the collector runs in the processes of the data path.
//
// Their live heaps are small (block data of a storage process is off the heap), so
// that the usual doubling means ten collections a second under load.
package gc

import (
	"os"
	"runtime/debug"
)

const (
	// Storage is for a storage process: a few MiB live, and garbage for each request.
	Storage = 400
	// Writer is for a process that serves volumes: requests under way are live, up to
	// 64 MiB for each client, so that the price in memory is higher.
	Writer = 200
)

// Set makes a collection begin when the heap has grown by percent since the last
// one, in the whole process. An operator's GOGC wins.
func Set(percent int) {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(percent)
	}
}
