// Package bridge plugs VMs into a node's network: a Linux bridge for each
// bridged network, a tap for each interface of a VM, and an nftables table for
// each VM that keeps its ports honest and, above all, silent.
//
// Silence: a frame from a port passes only while the port's name is an element
// of the set "alive" of its VM's table, and elements have a timeout. The guard
// renews them with each lease renewal, to half a second before the lease ends;
// when it is dead, frozen or late, the kernel has shut the port already. Frames
// toward the guest always pass, so that they can wait in the tap of a
// migration's destination.
//
// Rules are compiled to data first (Compile, with a text form that golden tests
// compare), then applied as one transaction; applying twice changes nothing. The
// calls act on the network namespace of the calling thread.
//
// Not covered: the kernel's timeouts run on the monotonic clock, which stands
// still while the machine is suspended; a machine that runs VMs must not be.
package bridge
