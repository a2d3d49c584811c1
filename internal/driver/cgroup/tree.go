package cgroup

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"roseau/internal/base/errs"
)

// Tree is where /proc and the hierarchies are. The zero value is the machine.
type Tree struct {
	root string // stands before every path
	made func(dir string) error
}

// path puts the root before a path.
func (t Tree) path(p string) string { return t.root + p }

// hierarchy is one mounted tree of groups.
type hierarchy struct {
	at          string // mount point
	root        string // the group that is mounted there
	controllers []string
	v2          bool
}

// hierarchies reads what is mounted. A mount that hides another comes later.
func (t Tree) hierarchies() ([]hierarchy, error) {
	b, err := os.ReadFile(t.path("/proc/self/mountinfo"))
	if err != nil {
		return nil, err
	}
	return parseMounts(string(b)), nil
}

// parseMounts picks the cgroup file systems out of mountinfo.
func parseMounts(text string) []hierarchy {
	var list []hierarchy
	for _, line := range strings.Split(text, "\n") {
		head, tail, ok := strings.Cut(line, " - ")
		h, f := strings.Fields(head), strings.Fields(tail)
		if !ok || len(h) < 5 || len(f) < 3 || !strings.HasPrefix(f[0], "cgroup") {
			continue
		}
		list = append(list, hierarchy{at: h[4], root: h[3], controllers: strings.Split(f[2], ","), v2: f[0] == "cgroup2"})
	}
	return list
}

// memberships reads the groups of a process: by controller, "" for version 2.
func (t Tree) memberships(pid string) (map[string]string, error) {
	b, err := os.ReadFile(t.path("/proc/" + pid + "/cgroup"))
	if err != nil {
		return nil, err
	}
	return parseMemberships(string(b)), nil
}

func parseMemberships(text string) map[string]string {
	m := map[string]string{}
	for _, line := range strings.Split(text, "\n") {
		f := strings.SplitN(line, ":", 3)
		if len(f) != 3 {
			continue
		}
		for _, c := range strings.Split(f[1], ",") {
			m[c] = f[2]
		}
	}
	return m
}

// dirs finds where a process' groups are in the file system: by controller, ""
// for version 2. What is mounted nowhere is left out.
func (t Tree) dirs(pid string) (map[string]string, error) {
	member, err := t.memberships(pid)
	if err != nil {
		return nil, err
	}
	mounts, err := t.hierarchies()
	if err != nil {
		return nil, err
	}
	dirs := map[string]string{}
	for controller, group := range member {
		for _, h := range slices.Backward(mounts) {
			if h.v2 != (controller == "") || !h.v2 && !slices.Contains(h.controllers, controller) {
				continue
			}
			rel, err := filepath.Rel(h.root, group)
			if err != nil || rel == ".." || strings.HasPrefix(rel, "../") {
				continue // outside of what is mounted here
			}
			dirs[controller] = filepath.Join(h.at, rel)
			break
		}
	}
	return dirs, nil
}

// mkdir makes a group; one that exists is as good.
func (t Tree) mkdir(dir string) error {
	err := os.Mkdir(t.path(dir), 0o755)
	if errors.Is(err, os.ErrExist) {
		return nil
	}
	if err == nil && t.made != nil {
		err = t.made(t.path(dir))
	}
	return err
}

// write gives a control file a value.
func (t Tree) write(file, value string) error {
	f, err := os.OpenFile(t.path(file), os.O_WRONLY|os.O_TRUNC, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString(value)
	return errors.Join(err, f.Close())
}

func (t Tree) exists(file string) bool {
	_, err := os.Stat(t.path(file))
	return err == nil
}

// words reads a control file.
func (t Tree) words(file string) []string {
	b, err := os.ReadFile(t.path(file))
	if err != nil {
		return nil
	}
	return strings.Fields(string(b))
}

// Beside returns the version 2 group that this process' own one, called name,
// stands in; empty: its own has another name, or there is none.
func Beside(name string) string {
	dirs, err := Tree{}.dirs("self")
	if err != nil || filepath.Base(dirs[""]) != name {
		return ""
	}
	return filepath.Dir(dirs[""])
}

// removePatience is how long a group may take to be free of a process that was
// just reaped.
const removePatience = 2 * time.Second

// RemoveAll removes a group and those in it, all of them without processes. One
// that is gone is no error.
func RemoveAll(dir string) error {
	deadline := time.Now().Add(removePatience)
	for {
		entries, err := os.ReadDir(dir)
		if errors.Is(err, os.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		for _, e := range entries {
			if e.IsDir() {
				if err := RemoveAll(filepath.Join(dir, e.Name())); err != nil {
					return err
				}
			}
		}
		err = unix.Rmdir(dir)
		if err == nil || errors.Is(err, unix.ENOENT) {
			return nil
		}
		if !errors.Is(err, unix.EBUSY) || time.Now().After(deadline) {
			return &os.PathError{Op: "remove", Path: dir, Err: err}
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// ThawInside thaws the version 1 group that this process is in and those in it;
// in version 2 what is killed needs no thaw.
func ThawInside() error {
	dirs, err := Tree{}.dirs("self")
	if err != nil || dirs["freezer"] == "" {
		return err
	}
	return ThawAll(dirs["freezer"])
}

// ThawAll thaws a group and those in it, deepest last, so that what was killed
// while it was frozen ends.
func ThawAll(dir string) error {
	var all error
	err := filepath.WalkDir(dir, func(p string, d os.DirEntry, err error) error {
		if err != nil || !d.IsDir() {
			return nil // gone meanwhile
		}
		for file, word := range map[string]string{"freezer.state": "THAWED", "cgroup.freeze": "0"} {
			err := Tree{}.write(filepath.Join(p, file), word)
			if err != nil && !errors.Is(err, os.ErrNotExist) && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENODEV) {
				all = errors.Join(all, err)
			}
		}
		return nil
	})
	return errors.Join(all, err)
}

// Processes lists the processes of a group and of those in it.
func Processes(dir string) []string {
	var pids []string
	_ = filepath.WalkDir(dir, func(p string, d os.DirEntry, err error) error {
		if err == nil && d.IsDir() {
			pids = append(pids, Tree{}.words(filepath.Join(p, "cgroup.procs"))...)
		}
		return nil
	})
	return pids
}

// unusable says why a VM gets no group.
func unusable(format string, args ...any) error {
	return errs.New(errs.Unavailable, "make a control group: %s", fmt.Sprintf(format, args...))
}
