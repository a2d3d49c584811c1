// Package quorum decides which machines vote in etcd, one change at a time, and
// says in plain words what the cluster can still lose. It is pure: no I/O, no
// clock. The rules and why they are so: docs/design/quorum.md.
//
// Invariant: an action never costs the majority, and never takes a set of
// machines out of those that may fail, but in the ways that Permits names.
package quorum
