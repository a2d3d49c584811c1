// Package volume runs the writer of one or more volumes in a process: it is the
// shell around the pure core of package writer.
//
// The core belongs to whoever has the turn: he who posts something and finds
// nobody at work. Around it: for each storage node one connection with a sender
// and a receiver, transactions and watches in etcd, timers, and NBD exports. The shell decides nothing that could lose data; it
// carries events in and actions out.
//
// A Set is all volumes of one VM (or one volume of an offline writer). They are
// taken together and share one lease.
package volume
