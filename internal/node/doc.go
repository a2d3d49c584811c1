// Package node is the daemon of a node, `roseau node`: it runs the node's etcd
// member if the node votes, keeps its session, serves the API and runs the
// reconcilers. It is a wiring package: everything is built here and nobody but
// the command line imports it.
//
// A daemon may be killed at any line. VMs and their I/O do not depend on it; the
// next one takes up identity and data from the disk (nodeconf) and finishes what
// was begun (member.Settle).
package node
