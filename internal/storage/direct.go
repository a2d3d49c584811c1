package storage

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"time"

	"roseau/internal/base/ids"
	"roseau/internal/block/direct"
	"roseau/internal/block/replica"
	"roseau/internal/block/wire"
	"roseau/internal/driver/blockdev"
)

// What guards of this node ask so that they can read disks by themselves: see
// docs/design/direct-reads.md.

// ownCells returns the cells of a disk, and makes void what was told of it before.
// They stay mapped as long as the process lives.
func (p *process) ownCells(id ids.ID) (*direct.Cells, error) {
	p.mu.Lock()
	c := p.cells[id]
	p.mu.Unlock()
	if c == nil {
		var err error
		if c, err = direct.OwnCells(filepath.Join(p.o.CellsDir, id.String())); err != nil {
			return nil, err
		}
		p.mu.Lock()
		p.cells[id] = c
		p.mu.Unlock()
	}
	c.Begin()
	return c, nil
}

// acceptDirect answers questions of guards until the listener is closed.
func (p *process) acceptDirect(ctx context.Context, ln net.Listener) {
	if err := p.acceptEach(ctx, ln, p.serveDirect); err != nil {
		p.log.Error("accept questions for disks; guards read by message from now on", "err", err)
	}
}

func (p *process) serveDirect(ctx context.Context, nc net.Conn) {
	c := nc.(*net.UnixConn)
	defer c.Close()
	stop := context.AfterFunc(ctx, func() { c.Close() })
	defer stop()
	if err := checkRoot(c); err != nil {
		p.log.Warn("refuse question for a disk", "err", err)
		return
	}
	for {
		q, err := direct.ReadRequest(c)
		if err == nil {
			err = p.answerDirect(ctx, c, q)
		}
		if err != nil {
			if !errors.Is(err, io.EOF) && !errors.Is(err, net.ErrClosed) && !quiet(err) {
				p.log.Warn("question for a disk", "err", err)
			}
			return
		}
	}
}

// answerTime bounds the answer to one question.
const answerTime = 2 * time.Second

func (p *process) answerDirect(ctx context.Context, c *net.UnixConn, q direct.Request) error {
	ctx, cancel := context.WithTimeout(ctx, answerTime)
	defer cancel()
	if err := c.SetWriteDeadline(time.Now().Add(answerTime)); err != nil {
		return err
	}
	if q.Kind == direct.OpenDisk {
		var share, cells *os.File
		var session uint64
		err := p.inTurn(ctx, func() {
			if d := p.device(q.Disk); d != nil && d.core != nil && d.share != nil {
				share, cells, session = d.share, d.cells.File(), d.cells.Session()
			}
		})
		if err != nil {
			return err
		}
		if share == nil {
			return direct.WriteReply(c, wire.DiskFailed, nil)
		}
		return direct.WriteReply(c, wire.OK, binary.LittleEndian.AppendUint64(nil, session), share, cells)
	}
	done := make(chan replica.Event, 1)
	err := p.inTurn(ctx, func() {
		p.placeAsked++
		p.placeAsks[p.placeAsked] = done
		p.core.Places(p.o.Clock.Now(), p.placeAsked, q.Disk, q.Volume, q.Extent)
	})
	if err != nil {
		return err
	}
	select {
	case e := <-done:
		if e.Status != wire.OK {
			return direct.WriteReply(c, e.Status, nil)
		}
		return direct.WriteReply(c, wire.OK, e.Places.Append(nil))
	case <-ctx.Done():
		return context.Cause(ctx) // the disk hangs
	}
}

// shareDisk makes what guards are given, if the disk can be read past its engine.
func (d *device) shareDisk() {
	f, err := blockdev.Share(d.file)
	if err != nil {
		d.log.Info("guards read the disk by message", "cause", err)
		return
	}
	d.share = f
}

// unshare makes void what guards have of the disk.
func (d *device) unshare() {
	if d.cells != nil {
		d.cells.Begin()
	}
	if d.share != nil {
		if err := d.share.Close(); err != nil && !errors.Is(err, os.ErrClosed) {
			d.log.Warn("close shared disk", "err", err)
		}
	}
}
