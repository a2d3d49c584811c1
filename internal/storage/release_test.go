package storage

import (
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"roseau/internal/block/wire"
	"roseau/internal/core/repl"
	"roseau/internal/driver/blockdev"
)

// pulledFile is a disk that can be taken out; closed says that it was let go.
type pulledFile struct {
	blockdev.File
	out    atomic.Bool
	once   sync.Once
	closed chan struct{}
}

func (f *pulledFile) WritevAt(bufs [][]byte, off int64) error {
	if f.out.Load() {
		return unix.ENODEV
	}
	return f.File.WritevAt(bufs, off)
}

func (f *pulledFile) Close() error {
	f.once.Do(func() { close(f.closed) })
	return f.File.Close()
}

// A disk is given back while it is out and being opened again, and comes back at that
// moment: it is let go, and is none of the node's, after a restart neither.
func TestReleasedWhileItIsOpened(t *testing.T) {
	r := newRig(t)
	opened, trying, back := make(chan *pulledFile, 8), make(chan struct{}, 8), make(chan struct{})
	var away atomic.Bool
	r.run(func(o *Options) {
		o.Open = func(path string) (blockdev.File, error) {
			if away.Load() {
				trying <- struct{}{}
				<-back
			}
			f, err := blockdev.Open(path)
			if err != nil {
				return nil, err
			}
			p := &pulledFile{File: f, closed: make(chan struct{})}
			opened <- p
			return p, nil
		}
	})
	d := r.claim("d")
	g := r.connect(-1)
	o := g.open(d.ID, 1)
	g.write(o.Handle, 1, 1, 0, content(1, 1))
	var serving *pulledFile
	for len(opened) > 0 {
		serving = <-opened // the last one: a claim formats it first
	}
	away.Store(true)
	serving.out.Store(true)
	g.send(&wire.Write{ReqID: 999, Handle: o.Handle, Mark: repl.Mark{Epoch: 1, Wseq: 2}, Data: content(1, 3), CRC: crcs(content(1, 3))})
	<-trying
	r.must(r.ctl.Release(r.ctx(), d.ID))
	away.Store(false)
	close(back)
	select {
	case <-(<-opened).closed:
	case <-time.After(20 * time.Second):
		t.Error("a disk that was given back is held open")
	}
	for range 2 {
		if s, err := r.ctl.Status(r.ctx()); err != nil || len(s.Disks) != 0 {
			t.Errorf("disks: %+v, %v", s.Disks, err)
		}
		r.stop()
		r.run(nil)
	}
}
