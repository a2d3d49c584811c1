package node

import (
	"bufio"
	"context"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"time"

	"roseau/internal/base/size"
	"roseau/internal/model"
	"roseau/internal/store"
)

const (
	reportEvery  = 10 * time.Second
	qemuEvery    = 10 * time.Minute
	qemuBinary   = "qemu-system-x86_64"
	memoryStep   = 64 * size.MiB // changes below are not worth a write
	reportAtMost = time.Minute   // a report that says the same is repeated after this
)

// reportStatus keeps the node's own part of its status up to date: what the
// machine has. Other services fill in the rest (accelerator).
func reportStatus(ctx context.Context, d Deps, version string) error {
	var qemu string
	var asked, last time.Time
	var lastFree size.Bytes
	for {
		if time.Since(asked) > qemuEvery {
			qemu, asked = qemuVersion(ctx), time.Now()
		}
		total, free := memory()
		free -= free % memoryStep
		if free != lastFree || time.Since(last) > reportAtMost {
			_, err := store.Update(ctx, d.Store, d.Node, func(n *model.Node) error {
				n.Status.Version, n.Status.QEMU = version, qemu
				n.Status.CPUs, n.Status.Memory, n.Status.MemoryFree = runtime.NumCPU(), total, free
				n.Status.Reported = d.Clock.Wall().UTC()
				n.Status.Ready = false // computed at reading
				return nil
			})
			if err != nil {
				d.Log.Debug("report node status", "err", err)
			} else {
				last, lastFree = time.Now(), free
			}
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(reportEvery):
		}
	}
}

// memory reads what the machine has and what is available, 0 if unknown.
func memory() (total, free size.Bytes) {
	f, err := os.Open("/proc/meminfo")
	if err != nil {
		return 0, 0
	}
	defer f.Close()
	for sc := bufio.NewScanner(f); sc.Scan(); {
		name, rest, _ := strings.Cut(sc.Text(), ":")
		kib, err := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(rest), " kB"), 10, 64)
		if err != nil {
			continue
		}
		switch name {
		case "MemTotal":
			total = size.Bytes(kib) * size.KiB
		case "MemAvailable":
			free = size.Bytes(kib) * size.KiB
		}
	}
	return total, free
}

// qemuVersion asks QEMU for its version: "7.2.22", or "" if there is none.
func qemuVersion(ctx context.Context) string {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	out, err := exec.CommandContext(ctx, qemuBinary, "--version").Output()
	if err != nil {
		return ""
	}
	return parseQEMUVersion(string(out))
}

// parseQEMUVersion reads "QEMU emulator version 7.2.22 (Debian ...)".
func parseQEMUVersion(out string) string {
	_, rest, ok := strings.Cut(out, "version ")
	if !ok {
		return ""
	}
	fields := strings.Fields(rest)
	if len(fields) == 0 {
		return ""
	}
	return fields[0]
}
