// Package vmguard decides, for one VM on one node, whether its QEMU may run: the
// pure core of the guard. Core.Step takes an event and the time and returns what
// is to be done; it does no I/O, reads no clock, draws no ids. The shell
// (internal/guard) carries actions out in their order and reports back.
//
// Invariants, checked after each step by the tests:
//
//	G1  Cont is asked for only if the volumes are ours and served, their lease
//	    runs, no reason to pause stands, and no migration holds the guest.
//	G2  A port is opened at most to (lease deadline - 0.5 s); whenever the guest
//	    may not run, the port is shut before `stop` is asked for.
//	G3  Between migrate-continue and a decision the source neither resumes its
//	    volumes nor its guest: it needs the destination's "never" or a CAS won.
//	G4  The destination runs the guest only after its CAS is known to be made, and
//	    after "never" it never sends one.
//	G5  A QEMU whose run another run replaced is killed, never resumed.
//
// The tables of docs/design/ha.md (silence, STALE_EPOCH, live migration) are the
// specification; the tests name their cells.
package vmguard
