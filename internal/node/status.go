package node

import (
	"bufio"
	"context"
	"os"
	"os/exec"
	"runtime"
	"slices"
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
	var lastPressure int
	flags := cpuFlags()
	for {
		if time.Since(asked) > qemuEvery {
			qemu, asked = qemuVersion(ctx), time.Now()
		}
		total, free := memory()
		free -= free % memoryStep
		pressure := cpuPressure("/proc/pressure/cpu")
		if free != lastFree || pressure != lastPressure || time.Since(last) > reportAtMost {
			_, err := store.Update(ctx, d.Store, d.Node, func(n *model.Node) error {
				n.Status.Version, n.Status.QEMU = version, qemu
				n.Status.CPUs, n.Status.Memory, n.Status.MemoryFree = runtime.NumCPU(), total, free
				n.Status.CPUFlags, n.Status.CPUPressure = flags, pressure
				n.Status.Reported = d.Clock.Wall().UTC()
				n.Status.Ready = false // computed at reading
				return nil
			})
			if err != nil {
				d.Log.Debug("report node status", "err", err)
			} else {
				last, lastFree, lastPressure = time.Now(), free, pressure
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

// cpuFlags lists the features of the first CPU, sorted; nil: not known.
func cpuFlags() []string {
	f, err := os.Open("/proc/cpuinfo")
	if err != nil {
		return nil
	}
	defer f.Close()
	sc := bufio.NewScanner(f)
	sc.Buffer(nil, 1<<20)
	for sc.Scan() {
		if name, rest, _ := strings.Cut(sc.Text(), ":"); strings.TrimSpace(name) == "flags" {
			flags := strings.Fields(rest)
			slices.Sort(flags)
			return slices.Compact(flags)
		}
	}
	return nil
}

// cpuPressure reads a pressure file: the share of the last minute in which some
// task waited, in percent, rounded to 5 so that it is not written all the time; -1:
// the kernel does not say.
func cpuPressure(file string) int {
	data, err := os.ReadFile(file)
	if err != nil {
		return -1
	}
	for line := range strings.Lines(string(data)) {
		if !strings.HasPrefix(line, "some ") {
			continue
		}
		for _, f := range strings.Fields(line) {
			if v, ok := strings.CutPrefix(f, "avg60="); ok {
				if x, err := strconv.ParseFloat(v, 64); err == nil {
					return int(x/5+0.5) * 5
				}
			}
		}
	}
	return -1
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
