package disktest

import (
	"fmt"
	"math/rand/v2"

	"roseau/internal/block/disk"
)

// Driver runs a core on a disk, one finished action at a time. The order in
// which actions finish is drawn from Rand, or is the order of handing out.
type Driver struct {
	Disk *Disk
	Core *disk.Core
	Pool *disk.HeapPool
	Rand *rand.Rand // nil: in order

	Done    map[uint64]disk.Completion // by token, not yet taken
	Flying  []disk.IO
	Finish  func(disk.Completion) // nil: into Done
	ready   disk.Ready
	Actions int // finished so far
}

// Format makes an empty disk of that geometry.
func Format(id disk.Identity, g disk.Geometry) (*Disk, error) {
	list, err := disk.Format(id, g)
	if err != nil {
		return nil, err
	}
	d := New(g.DeviceBytes)
	for _, io := range list {
		if err := d.Do(io); err != nil {
			return nil, err
		}
	}
	return d, nil
}

// Start opens a core on the disk without running it.
func Start(d *Disk, o disk.Options, r *rand.Rand) *Driver {
	p := &disk.HeapPool{}
	if o.Pool == nil {
		o.Pool = p
	}
	o.DeviceBytes = d.Size
	v := &Driver{Disk: d, Core: disk.Open(o), Pool: p, Rand: r, Done: map[uint64]disk.Completion{}}
	v.Pump()
	return v
}

// Open opens a core on the disk and runs it until recovery ended.
func Open(d *Disk, o disk.Options, r *rand.Rand) (*Driver, disk.Recovery, error) {
	v := Start(d, o, r)
	for {
		rep, ended, err := v.Core.Opened()
		if ended {
			return v, rep, err
		}
		if !v.Step() {
			return v, rep, fmt.Errorf("open disk: recovery stopped with nothing under way")
		}
	}
}

// Pump takes what the core has ready.
func (v *Driver) Pump() {
	for {
		v.Core.Ready(&v.ready)
		for _, io := range v.ready.IO {
			v.Disk.Begin(io)
			v.Flying = append(v.Flying, io)
		}
		for _, c := range v.ready.Done {
			if v.Finish != nil {
				v.Finish(c)
			} else {
				v.Done[c.Token] = c
			}
		}
		if len(v.ready.IO) == 0 && len(v.ready.Done) == 0 {
			return
		}
	}
}

// Step finishes one action; false: none is under way.
func (v *Driver) Step() bool {
	v.Pump()
	if len(v.Flying) == 0 {
		return false
	}
	i := 0
	if v.Rand != nil {
		i = v.Rand.IntN(len(v.Flying))
	}
	io := v.Flying[i]
	v.Flying = append(v.Flying[:i], v.Flying[i+1:]...)
	v.Actions++
	v.Core.Done(io.ID, v.Disk.Finish(io))
	v.Pump()
	return true
}

// Settle runs until nothing is under way.
func (v *Driver) Settle() {
	for v.Step() {
	}
}

// Wait runs until the request with that token is answered, and takes it.
func (v *Driver) Wait(token uint64) (disk.Completion, bool) {
	for {
		v.Pump()
		if c, ok := v.Done[token]; ok {
			delete(v.Done, token)
			return c, true
		}
		if !v.Step() {
			return disk.Completion{}, false
		}
	}
}

// Quiesce lets the core go idle: everything is applied and checkpointed.
func (v *Driver) Quiesce() {
	for range 4 {
		v.Core.Idle()
		v.Settle()
	}
}
