// Package sim is a deterministic cluster: the production cores of disk, replica
// and writer in one thread under virtual time, with models of disks, networks,
// etcd, guests and operators around them, and an oracle that knows what every
// block may hold. A seed decides everything; the same seed of the same commit
// gives the same run.
//
// `roseau sim run` and `go test ./internal/sim` run seeds; a failing one prints
// the command that repeats it.
package sim
