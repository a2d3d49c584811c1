// Package member makes clusters and lets nodes join and leave them.
//
// A join has two halves. The first runs on a machine that is in no cluster: it
// shows a token to a voter over TLS that the token's fingerprint authenticates,
// gets a certificate (and the authority's key, if it is to vote), is added to
// etcd as a learner and writes its node config. From that file on it is a node,
// and the second half, Settle, runs in its daemon as often as it takes: it
// promotes the learner and marks the token as used.
//
// So a join that breaks before the file has changed nothing that counts: a
// learner has no vote, and the same token goes on with it; a token that is never
// used again is cleaned up after (Sweep). A join that breaks after the file is
// finished by the daemon.
//
// A token's secret is kept as a hash only. The token also has the fingerprint of
// the cluster's authority and addresses of voters, so that a joiner needs nothing
// else, and cannot be led to another cluster.
package member
