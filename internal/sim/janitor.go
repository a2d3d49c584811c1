package sim

import (
	"errors"
	"math/rand/v2"
	"strconv"
	"time"

	"roseau/internal/base/ids"
	"roseau/internal/block/disk"
	"roseau/internal/block/writer"
	"roseau/internal/core/repl"
)

// janitor frees the copies that lie elsewhere now, as the node's daemon does: what the
// disks hold is listed first and the records are read afterwards. It draws from a
// stream of its own.
type janitor struct {
	w   *world
	rng *rand.Rand
}

const janitorEvery = 2 * time.Second // ten in production: seeds are short

func newJanitor(w *world) *janitor {
	return &janitor{w: w, rng: rand.New(rand.NewPCG(w.opt.Seed, 0x6a616e))}
}

func (j *janitor) tick() {
	j.w.after(janitorEvery/2+time.Duration(j.rng.Int64N(int64(janitorEvery))), j.tick)
	j.round()
}

// round looks at all disks, unless nobody does it in this run.
func (j *janitor) round() {
	w := j.w
	if w.opt.Mutations.NoJanitor {
		return
	}
	for _, n := range w.nodes {
		if !n.serving() || n.asleep || !w.etcdReachable(n) {
			continue
		}
		process := n.process
		for _, d := range n.disks {
			if e := n.engines[d.id]; e != nil && !d.dead {
				for _, id := range e.Volumes() {
					if seen, ok := e.Volume(id); ok {
						w.after(time.Millisecond+time.Duration(j.rng.Int64N(int64(20*time.Millisecond))), func() {
							if n.process == process && !n.asleep && w.etcdReachable(n) {
								j.judge(n, d.id, seen)
							}
						})
					}
				}
			}
		}
	}
}

// judge reads the records and frees a copy that they do not name, or of which a tomb
// says that its volume was deleted.
func (j *janitor) judge(n *node, d ids.ID, seen disk.VolumeInfo) {
	w := j.w
	if w.etcd.tombs[seen.Volume] {
		w.tracef("%s frees what disk %s holds of a deleted volume", n.name(), d.Short())
		w.note("volume_freed")
		w.seq++
		n.core.Drop(w.now, w.seq, d, seen.Volume)
		n.pump()
		return
	}
	if w.etcd.keys[repl.Key{Kind: repl.KeyOwn, ID: seen.Volume}.Path()].rev == 0 {
		return // a parent whose records were taken away
	}
	v := w.etcd.records(ids.ID{}, idsOf(seen.Volume), w.diskIdx).Volumes[0]
	if !repl.Stray(v, d, seen.Promise, seen.Told.CfgVersion) {
		return
	}
	w.note("stray")
	w.tracef("%s frees what disk %s holds of a volume that lies elsewhere", n.name(), d.Short())
	w.seq++
	n.core.DropStray(n.clock(), w.seq, d, seen)
	n.pump()
}

// sweep: every node's daemon looks for copies that lie elsewhere now.
func (p *player) sweep([]string) error {
	p.w.janitor.round()
	return nil
}

// move nX K [nowait]: all that its K-th disk holds of the volume moves to the other one.
func (p *player) move(a []string) error {
	nowait := len(a) == 3 && a[2] == "nowait"
	if len(a) != 2 && !nowait {
		return errors.New("want a node and the number of a disk, and nowait or nothing")
	}
	n, err := p.node(a[0])
	if err != nil {
		return err
	}
	k, err := strconv.Atoi(a[1])
	if err != nil || len(n.disks) != 2 || k < 0 || k > 1 {
		return errors.New("want 0 or 1, of two disks")
	}
	v := p.t.record()
	from, to := n.disks[k].id, n.disks[1-k].id
	p.t.manager.active.step(writer.Command{Kind: writer.ReplaceDisk, Replace: writer.Replace{Old: from, New: to, NewNode: n.id, Live: true, Segments: movable(&v, from, to)}})
	if nowait {
		return nil
	}
	return p.await("the move", time.Minute, func() bool { v := p.t.record(); return !placed(v.Seg, from) && !moving(&v) })
}
