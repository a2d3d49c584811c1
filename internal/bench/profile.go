package bench

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime/pprof"
	"syscall"
	"time"

	"roseau/internal/base/errs"
)

// ProfileEnv is the directory that each process of a Cluster writes a CPU profile
// to: NAME-PID.pprof, from its start to its end. Empty: none.
const ProfileEnv = "ROSEAU_BENCH_PROFILE"

// Profile begins a CPU profile of this process if ProfileEnv is set; stop ends and
// writes it.
func Profile(name string) (stop func() error, err error) {
	dir := os.Getenv(ProfileEnv)
	if dir == "" {
		return func() error { return nil }, nil
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	f, err := os.Create(filepath.Join(dir, fmt.Sprintf("%s-%d.pprof", name, os.Getpid())))
	if err != nil {
		return nil, err
	}
	if err := pprof.StartCPUProfile(f); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return func() error {
		pprof.StopCPUProfile()
		return f.Close()
	}, nil
}

const profileTime = 20 * time.Second // for a storage process to write its profile

// stopStorage lets the storage process of node i end by itself if it makes a
// profile, and kills it otherwise.
func (c *Cluster) stopStorage(i int) error {
	if os.Getenv(ProfileEnv) == "" || c.procs[i] == nil {
		return c.KillStorage(i)
	}
	if err := c.procs[i].Process.Signal(syscall.SIGTERM); err != nil {
		return err
	}
	select {
	case err := <-c.waits[i]:
		c.procs[i] = nil
		return err
	case <-time.After(profileTime):
		return errors.Join(errs.New(errs.Unavailable, "storage %d: wrote no profile within %v", i, profileTime), c.KillStorage(i))
	}
}
