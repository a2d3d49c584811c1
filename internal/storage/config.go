package storage

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"roseau/internal/base/errs"
	"roseau/internal/base/ids"
	"roseau/internal/nodeconf"
)

// diskConfig is a claimed disk.
type diskConfig struct {
	ID   ids.ID `json:"id"`
	Path string `json:"path"`
	// Boot is not zero once the disk was away and came back: what it had not
	// flushed then is lost, as by a reboot.
	Boot ids.ID `json:"boot,omitzero"`
	// NodeBoot is the node's boot identity under which Boot was drawn: a reboot
	// ends it.
	NodeBoot ids.ID `json:"node_boot,omitzero"`
	// Session is the newest session of the engine that was seen on the disk: a
	// clone from before it, or a disk that went back in time, is refused. 0: none.
	Session uint64 `json:"session,omitempty"`
	// Failed says what ended the disk, if it failed a write or an fdatasync: what it
	// had not flushed may be gone although it reads well, so no restart of the process
	// or of the node makes it good again. "": nothing did.
	Failed string `json:"failed,omitempty"`
}

// config is the content of paths.StorageConfig.
type config struct {
	Disks []diskConfig `json:"disks"`
}

func loadConfig(path string) (*config, error) {
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return &config{}, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read storage config: %w", err)
	}
	c := new(config)
	d := json.NewDecoder(strings.NewReader(string(b)))
	d.DisallowUnknownFields()
	if err := d.Decode(c); err != nil {
		return nil, errs.New(errs.Corrupt, "read storage config %s: %w", path, err)
	}
	return c, nil
}

func (c *config) save(path string) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return fmt.Errorf("save storage config: %w", err)
	}
	b, err := json.MarshalIndent(c, "", "  ")
	if err != nil {
		return fmt.Errorf("save storage config: %w", err)
	}
	return nodeconf.WriteFile(path, append(b, '\n'), 0o600)
}

// kernelBoot is where the kernel tells its own boot identity.
const kernelBoot = "/proc/sys/kernel/random/boot_id"

// bootID returns the boot identity of this node: a random file in tmpfs, made
// by whoever comes first. On a real machine the kernel's is mixed in, so that a
// /run that survives a kexec is noticed; lab nodes share one kernel [S23].
func bootID(path string, lab bool) (ids.ID, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return ids.ID{}, fmt.Errorf("boot identity: %w", err)
	}
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		// Link a complete file: a reader never sees half of one.
		tmp := path + "." + rand.Text()
		if err := os.WriteFile(tmp, []byte(ids.New().String()+"\n"), 0o644); err != nil {
			return ids.ID{}, fmt.Errorf("boot identity: %w", err)
		}
		err = os.Link(tmp, path)
		if err = errors.Join(ignoreExist(err), os.Remove(tmp)); err != nil {
			return ids.ID{}, fmt.Errorf("boot identity: %w", err)
		}
		text, err = os.ReadFile(path)
	}
	if err != nil {
		return ids.ID{}, fmt.Errorf("boot identity: %w", err)
	}
	id, err := ids.Parse(strings.TrimSpace(string(text)))
	if err != nil || lab {
		return id, err
	}
	kernel, err := os.ReadFile(kernelBoot)
	if err != nil {
		return ids.ID{}, fmt.Errorf("boot identity: %w", err)
	}
	sum := sha256.Sum256(append(id[:], kernel...))
	copy(id[:], sum[:])
	return id, nil
}

func ignoreExist(err error) error {
	if errors.Is(err, fs.ErrExist) {
		return nil
	}
	return err
}

// walBytes is the size of the log on a new disk: 2 % of it, from 256 MiB to
// 2 GiB; on the small disks of a lab an eighth, if that is less, but always enough
// for a write of a whole extent, which takes a quarter of the log at most.
func walBytes(diskBytes int64) int64 {
	const mib = 1 << 20
	n := min(max(diskBytes/50, 256*mib), 2048*mib)
	return max(min(n, diskBytes/8)/mib*mib, 20*mib)
}
