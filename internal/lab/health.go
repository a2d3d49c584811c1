package lab

import (
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"roseau/internal/base/clock"
	"roseau/internal/base/paths"
	"roseau/internal/driver/blockdev/faultdisk"
	"roseau/internal/lab/labclient"
)

// labHealthDir is where a node finds what its disks say of themselves, below its
// state directory.
var labHealthDir = filepath.Base(paths.LabHealth)

// diskHealth sets what a disk says of its own health.
func (l *Lab) diskHealth(_ context.Context, req labclient.Request) (labclient.Answer, error) {
	a := labclient.Answer{At: clock.System{}.Wall()}
	err := l.disk(req, func(n *node, s *diskState, _ *faultdisk.Handle) error {
		file := filepath.Join(n.stateDir(), labHealthDir, s.name+".json")
		if req.Health == nil {
			if err := os.Remove(file); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
			return nil
		}
		b, err := json.Marshal(req.Health)
		if err != nil {
			return err
		}
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			return err
		}
		tmp := file + ".new"
		if err := os.WriteFile(tmp, b, 0o644); err != nil {
			return err
		}
		return os.Rename(tmp, file)
	})
	l.log.Info("disk's health is set", "node", req.Node, "disk", req.Disk, "health", req.Health != nil)
	return a, err
}
