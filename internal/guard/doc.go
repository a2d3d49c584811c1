// Package guard is the process `roseau vmguard ID`: it keeps one VM. It holds
// the writers of the VM's volumes and serves them to QEMU, renews the ports with
// the lease, speaks QMP, migrates, and answers on a control socket.
//
// What may be done is decided by core/vmguard. One goroutine, the loop, owns the
// core: it takes events from a queue, steps the core, and carries the actions
// out in their order. What can block (etcd, storage, QEMU) runs in goroutines
// that post their outcome to the queue; nothing that the loop itself does waits
// for anything but the kernel.
//
// QEMU outlives the guard. A successor finds it by the record in the VM's run
// directory (pid, start time, run), kills a predecessor that still holds the
// lock, and adopts it.
package guard
