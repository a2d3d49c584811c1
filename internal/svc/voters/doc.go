// Package voters runs core/quorum: it is the only code that changes etcd's list
// of members, on the node where etcd's leader is. What it looks at are the nodes
// and the witness as the store has them, the list of members, and what each
// member answers. See docs/design/quorum.md.
package voters
