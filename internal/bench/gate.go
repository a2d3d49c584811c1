package bench

import (
	"os"
	"time"

	"roseau/internal/driver/blockdev"
)

// Files in a node's directory: gatedName makes its storage process open the disk
// behind a gate, hangName shuts the gate.
const (
	gatedName = "gated"
	hangName  = "hang"
)

// gate is a disk whose operations wait while the file hang exists, as those of a
// sick drive do.
type gate struct {
	blockdev.File
	hang string
}

// gated opens disks behind a gate.
func gated(hang string) blockdev.Opener {
	return func(path string) (blockdev.File, error) {
		f, err := blockdev.Open(path)
		return &gate{f, hang}, err
	}
}

func (g *gate) pass() {
	for {
		if _, err := os.Stat(g.hang); err != nil {
			return
		}
		time.Sleep(10 * time.Millisecond) // another process opens the gate
	}
}

func (g *gate) ReadAt(p []byte, off int64) (int, error) {
	g.pass()
	return g.File.ReadAt(p, off)
}

func (g *gate) WritevAt(bufs [][]byte, off int64) error {
	g.pass()
	return g.File.WritevAt(bufs, off)
}

func (g *gate) Datasync() error {
	g.pass()
	return g.File.Datasync()
}
