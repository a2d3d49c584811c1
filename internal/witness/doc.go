// Package witness is the process `roseau witness run`: on a small machine beside
// the cluster it has up to two etcd members, which add votes and hold no data of
// VMs. Which of them vote, the cluster's manager decides; see
// docs/design/quorum.md.
//
// Invariant: no member of it runs before the witness knows that its data were
// not put back to an older state, as far as that can be known (Behind).
package witness
