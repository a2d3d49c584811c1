package lab

import (
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"roseau/internal/driver/cgroup"
	"roseau/internal/lab/labclient"
)

// proc names one process for good: a pid is used again, a pid with its start
// time is not.
type proc struct {
	PID        int    `json:"pid"`
	StartTicks uint64 `json:"start_ticks"` // since boot, /proc/PID/stat field 22
}

// records are what a lab leaves in the host outside its directory, for the next
// `lab up` or `lab down` after a daemon that was killed.
type records struct {
	Daemon  proc            `json:"daemon"`
	Inits   map[string]proc `json:"inits"` // by node
	Cgroups []string        `json:"cgroups,omitempty"`
}

type stat struct {
	state      byte
	startTicks uint64
}

// readStat reads the state and start time of a process.
func readStat(pid int) (stat, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return stat{}, err
	}
	return parseStat(string(b))
}

// parseStat reads a line of /proc/PID/stat; the name in parentheses may hold
// anything.
func parseStat(s string) (stat, error) {
	i := strings.LastIndexByte(s, ')')
	fields := strings.Fields(s[i+1:])
	if i < 0 || len(fields) < 20 {
		return stat{}, errors.New("parse process state: too few fields")
	}
	ticks, err := strconv.ParseUint(fields[19], 10, 64)
	if err != nil {
		return stat{}, fmt.Errorf("parse process state: %w", err)
	}
	return stat{state: fields[0][0], startTicks: ticks}, nil
}

// identify returns the name of a living process.
func identify(pid int) (proc, error) {
	st, err := readStat(pid)
	return proc{PID: pid, StartTicks: st.startTicks}, err
}

// alive reports whether the very process lives (a zombie does not).
func (p proc) alive() bool {
	if p.PID == 0 {
		return false
	}
	st, err := readStat(p.PID)
	return err == nil && st.startTicks == p.StartTicks && st.state != 'Z'
}

// end kills the process and waits until it is gone.
func (p proc) end(timeout time.Duration) error {
	deadline := time.Now().Add(timeout)
	for p.alive() {
		if err := syscall.Kill(p.PID, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
			return fmt.Errorf("kill process %d: %w", p.PID, err)
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("kill process %d: it does not end within %v", p.PID, timeout)
		}
		time.Sleep(5 * time.Millisecond)
	}
	return nil
}

func loadRecords(dir string) (records, error) {
	r := records{Inits: map[string]proc{}}
	b, err := os.ReadFile(filepath.Join(dir, labclient.RecordsFile))
	if errors.Is(err, os.ErrNotExist) {
		return r, nil
	}
	if err == nil {
		err = json.Unmarshal(b, &r)
	}
	return r, err
}

func (r records) save(dir string) error {
	return writeJSON(filepath.Join(dir, labclient.RecordsFile), r)
}

// writeJSON replaces a file as a whole.
func writeJSON(path string, v any) error {
	b, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return err
	}
	if err := os.WriteFile(path+".new", append(b, '\n'), 0o600); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}

// cleanLeftovers ends what a killed daemon left: its nodes (which end with it by
// themselves; this makes sure) and their cgroups. The daemon itself must be gone
// or is ended, too.
func cleanLeftovers(dir string, log *slog.Logger) error {
	r, err := loadRecords(dir)
	if err != nil {
		return fmt.Errorf("clean up lab: read records: %w", err)
	}
	const patience = 10 * time.Second
	if r.Daemon.alive() {
		log.Warn("ending a lab daemon that does not answer", "pid", r.Daemon.PID)
		err = r.Daemon.end(patience)
	}
	for node, p := range r.Inits {
		if p.alive() {
			log.Warn("ending a node of a lab that is gone", "node", node, "pid", p.PID)
			err = errors.Join(err, p.end(patience))
		}
	}
	for _, cg := range r.Cgroups {
		err = errors.Join(err, thawAndRemove(cg))
	}
	if err != nil {
		return fmt.Errorf("clean up lab: %w", err)
	}
	for _, name := range []string{labclient.RecordsFile, labclient.SocketFile, labclient.FDSocket} {
		if rerr := os.Remove(filepath.Join(dir, name)); rerr != nil && !errors.Is(rerr, os.ErrNotExist) {
			err = errors.Join(err, rerr)
		}
	}
	return err
}

// thawAndRemove removes a node's cgroup; processes that were frozen when they
// were killed end now.
func thawAndRemove(dir string) error {
	return errors.Join(cgroup.ThawAll(dir), cgroup.RemoveAll(dir))
}
