// Package smart asks a disk for its own health: temperature, wear, spare blocks,
// errors of the medium. It decides nothing; package core/diskcare judges.
//
// smartctl is asked if it is there: it knows ATA behind every bridge, SCSI, and
// which attribute means what on which model. Without it an NVMe disk is asked for
// its log page by the kernel, which needs no knowledge of models. On other disks
// its absence is said, never an error: a disk without health is still a disk.
package smart

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"roseau/internal/core/diskcare"
)

// Reader reads the health of disks. The zero value reads real ones.
type Reader struct {
	// Lab is a directory of files <name of the disk>.json with a diskcare.Health
	// each; empty: this is no lab.
	Lab string
	// Smartctl is the program; default "smartctl".
	Smartctl string
}

// readTimeout bounds one question to a drive.
const readTimeout = 20 * time.Second

// maxOutput of smartctl that is looked at, in bytes.
const maxOutput = 1 << 20

// Read asks the disk at path. What is not known is told in Missing.
func (r *Reader) Read(ctx context.Context, path string) *diskcare.Health {
	if r.Lab != "" {
		return r.lab(path)
	}
	if st, err := os.Stat(path); err == nil && st.Mode().IsRegular() {
		return &diskcare.Health{Missing: "a file has no health of its own; look at the disk that holds it"}
	}
	h, err := r.smartctl(ctx, path)
	if err == nil {
		return h
	}
	if real, rerr := filepath.EvalSymlinks(path); rerr == nil && strings.HasPrefix(filepath.Base(real), "nvme") {
		if log, lerr := nvmeLog(real); lerr == nil {
			return DecodeNVMe(log)
		}
	}
	if errors.Is(err, exec.ErrNotFound) {
		return &diskcare.Health{Missing: "smartctl is not installed: `apt install smartmontools`"}
	}
	return &diskcare.Health{Missing: err.Error()}
}

// lab reads what the lab's operator says of a disk.
func (r *Reader) lab(path string) *diskcare.Health {
	name := strings.TrimSuffix(filepath.Base(path), ".img") + ".json"
	b, err := os.ReadFile(filepath.Join(r.Lab, name))
	if err != nil {
		return &diskcare.Health{Missing: "a lab's disk has no health; `roseau lab disk health` gives it one"}
	}
	return decodeLab(b)
}

func (r *Reader) smartctl(ctx context.Context, path string) (*diskcare.Health, error) {
	prog := r.Smartctl
	if prog == "" {
		prog = "smartctl"
	}
	if _, err := exec.LookPath(prog); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, readTimeout)
	defer cancel()
	// A disk that sleeps is left asleep.
	cmd := exec.CommandContext(ctx, prog, "--json", "--all", "--nocheck=standby,0", path)
	var out bytes.Buffer
	cmd.Stdout = &out
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		return nil, err
	}
	// The exit code is a set of bits that the report says better.
	return DecodeSmartctl(out.Bytes()[:min(out.Len(), maxOutput)])
}
