package cgroup

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"roseau/internal/base/size"
)

// Limits of a group. A field that is 0 limits nothing.
type Limits struct {
	Memory    size.Bytes // hard limit of what QEMU and the kernel on its behalf use
	CPUWeight int        // 1 to 10000; 100 is an ordinary process
	Pids      int        // processes and threads
}

// Version of the kernel's interface.
type Version string

// The versions.
const (
	V1 Version = "v1"
	V2 Version = "v2"
)

// Names of groups.
const (
	guardGroup = "guard" // v2: of the guard, beside qemuGroup
	qemuGroup  = "qemu"
	vmPrefix   = "roseau-vm-" // v1: with the VM's id
	unitPrefix = "roseau-vm@" // v2: what the supervisor calls the guard's own group
)

// wanted are the controllers that limit a VM. "freezer" is one in version 1 only.
var wanted = []string{"memory", "cpu", "pids"}

// Group is a VM's group. It is safe for concurrent use: it holds paths only.
type Group struct {
	tree Tree
	v2   bool
	dirs map[string]string // v1: by controller; v2: "" alone
}

// Make makes the group of a VM, or takes the one that is there, and sets its
// limits. The name begins with the VM's id; version 2 does not use it. errs.Unavailable: this machine or this process has no group to give,
// and the text says why; the VM can run without.
func Make(name string, l Limits) (*Group, error) { return Tree{}.Make(name, l) }

// Make is the function of the same name on another tree.
func (t Tree) Make(name string, l Limits) (*Group, error) {
	own, err := t.dirs("self")
	if err != nil {
		return nil, unusable("%v", err)
	}
	if dir, ok := own[""]; ok && slices.Contains(t.words(filepath.Join(dir, "cgroup.controllers")), "memory") {
		return t.makeV2(dir, l)
	}
	return t.makeV1(own, name, l)
}

// unitOf returns the group that the supervisor gave the guard: the guard itself
// may have moved into one below it.
func unitOf(dir string) (string, bool) {
	if b := filepath.Base(dir); b == guardGroup || b == qemuGroup || b == ".control" {
		dir = filepath.Dir(dir)
	}
	return dir, strings.HasPrefix(filepath.Base(dir), unitPrefix)
}

func (t Tree) makeV2(own string, l Limits) (*Group, error) {
	unit, ok := unitOf(own)
	if !ok {
		return nil, unusable("the guard's own group %s is not one that its unit delegates", own)
	}
	g := &Group{tree: t, v2: true, dirs: map[string]string{"": filepath.Join(unit, qemuGroup)}}
	if err := t.mkdir(g.dirs[""]); err != nil {
		return nil, unusable("%v (has the unit Delegate=yes?)", err)
	}
	if err := g.Confine(l); err != nil {
		return nil, err
	}
	return g, g.Thaw() // it may be one that was left frozen
}

func (t Tree) makeV1(own map[string]string, name string, l Limits) (*Group, error) {
	g := &Group{tree: t, dirs: map[string]string{}}
	var all error
	for _, c := range append([]string{"freezer"}, wanted...) {
		parent, ok := own[c]
		if !ok {
			continue
		}
		dir := filepath.Join(parent, vmPrefix+name)
		if err := t.mkdir(dir); err != nil {
			all = errors.Join(all, err)
			continue
		}
		g.dirs[c] = dir
	}
	if len(g.dirs) == 0 {
		if all == nil {
			all = errors.New("neither version 2 with a memory controller nor version 1 is mounted")
		}
		return nil, unusable("%v", all)
	}
	if err := g.Confine(l); err != nil {
		return nil, err
	}
	return g, g.Thaw()
}

// Of finds the group that a predecessor put a QEMU into. errs.Unavailable: it is
// in none.
func Of(pid int, vm string) (*Group, error) { return Tree{}.Of(pid, vm) }

// Of is the function of the same name on another tree.
func (t Tree) Of(pid int, vm string) (*Group, error) {
	dirs, err := t.dirs(strconv.Itoa(pid))
	if err != nil {
		return nil, unusable("%v", err)
	}
	if dir, ok := dirs[""]; ok && filepath.Base(dir) == qemuGroup {
		if _, ok := unitOf(dir); ok {
			return &Group{tree: t, v2: true, dirs: map[string]string{"": dir}}, nil
		}
	}
	g := &Group{tree: t, dirs: map[string]string{}}
	for c, dir := range dirs {
		if c != "" && strings.HasPrefix(filepath.Base(dir), vmPrefix+vm) {
			g.dirs[c] = dir
		}
	}
	if len(g.dirs) == 0 {
		return nil, unusable("process %d is in none of vm %s", pid, vm)
	}
	return g, nil
}

// ThawProcess thaws the version 1 group of a VM that a process is in: there a
// frozen process takes its SIGKILL only when it is thawed.
func ThawProcess(pid int) error {
	dirs, err := Tree{}.dirs(strconv.Itoa(pid))
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ESRCH) {
		return nil // it is gone
	}
	if err != nil {
		return err
	}
	if dir := dirs["freezer"]; strings.HasPrefix(filepath.Base(dir), vmPrefix) {
		return Tree{}.write(filepath.Join(dir, "freezer.state"), "THAWED")
	}
	return nil
}

// Confine sets the limits. In version 2 it first moves this process, the guard,
// out of the way: a group with processes of its own cannot share out its
// controllers.
func (g *Group) Confine(l Limits) error {
	if g.v2 {
		return g.confineV2(l)
	}
	var all error
	set := func(controller, file, value string) {
		if dir, ok := g.dirs[controller]; ok {
			all = errors.Join(all, g.tree.write(filepath.Join(dir, file), value))
		}
	}
	if l.Memory > 0 {
		set("memory", "memory.limit_in_bytes", strconv.FormatInt(int64(l.Memory), 10))
	}
	if l.CPUWeight > 0 {
		set("cpu", "cpu.shares", strconv.Itoa(max(2, l.CPUWeight*1024/100)))
	}
	if l.Pids > 0 {
		set("pids", "pids.max", strconv.Itoa(l.Pids))
	}
	if all != nil {
		return unusable("%v", all)
	}
	return nil
}

func (g *Group) confineV2(l Limits) error {
	dir := g.dirs[""]
	unit := filepath.Dir(dir)
	guard := filepath.Join(unit, guardGroup)
	if err := g.tree.mkdir(guard); err != nil {
		return unusable("%v", err)
	}
	if err := g.tree.write(filepath.Join(guard, "cgroup.procs"), strconv.Itoa(os.Getpid())); err != nil {
		return unusable("move the guard to %s: %v", guard, err)
	}
	var all error
	offered := g.tree.words(filepath.Join(unit, "cgroup.controllers"))
	for _, c := range wanted {
		if slices.Contains(offered, c) {
			all = errors.Join(all, g.tree.write(filepath.Join(unit, "cgroup.subtree_control"), "+"+c))
		}
	}
	for _, s := range []struct {
		controller, file string
		value            int64
		of               string
	}{
		{"memory", "memory.max", int64(l.Memory), dir}, {"pids", "pids.max", int64(l.Pids), dir},
		{"cpu", "cpu.weight", int64(l.CPUWeight), dir},
		// The guard answers for the guest's disks: it gets as much as all of QEMU.
		{"cpu", "cpu.weight", int64(l.CPUWeight), guard},
	} {
		if s.value > 0 && slices.Contains(offered, s.controller) {
			all = errors.Join(all, g.tree.write(filepath.Join(s.of, s.file), strconv.FormatInt(s.value, 10)))
		}
	}
	if all != nil {
		return unusable("%v", all)
	}
	return nil
}

// Loosen takes the limits back in version 2, so that the supervisor can start
// the next guard in the unit's group: the kernel lets no process into a group
// that shares out its controllers. In version 1 there is nothing to do.
func (g *Group) Loosen() error {
	if !g.v2 {
		return nil
	}
	unit := filepath.Dir(g.dirs[""])
	var all error
	for _, c := range g.tree.words(filepath.Join(unit, "cgroup.subtree_control")) {
		all = errors.Join(all, g.tree.write(filepath.Join(unit, "cgroup.subtree_control"), "-"+c))
	}
	return all
}

// Version says which interface holds the group.
func (g *Group) Version() Version {
	if g.v2 {
		return V2
	}
	return V1
}

// Controllers lists what limits the group, sorted; with "freezer" if it can
// freeze.
func (g *Group) Controllers() []string {
	var list []string
	if g.v2 {
		for _, c := range g.tree.words(filepath.Join(g.dirs[""], "cgroup.controllers")) {
			if slices.Contains(wanted, c) {
				list = append(list, c)
			}
		}
	} else {
		for c := range g.dirs {
			list = append(list, c)
		}
	}
	if g.v2 && g.CanFreeze() {
		list = append(list, "freezer")
	}
	slices.Sort(list)
	return list
}

// Add moves a process into the group, all its threads at once.
func (g *Group) Add(pid int) error {
	var all error
	for _, dir := range g.dirs {
		if err := g.tree.write(filepath.Join(dir, "cgroup.procs"), strconv.Itoa(pid)); err != nil {
			all = errors.Join(all, fmt.Errorf("put process %d into %s: %w", pid, dir, err))
		}
	}
	return all
}

// freezeFile names the file that freezes, with both its words.
func (g *Group) freezeFile() (file, freeze, thaw string, ok bool) {
	if g == nil {
		return "", "", "", false
	}
	file, freeze, thaw = filepath.Join(g.dirs[""], "cgroup.freeze"), "1", "0"
	if !g.v2 {
		file, freeze, thaw = filepath.Join(g.dirs["freezer"], "freezer.state"), "FROZEN", "THAWED"
		if g.dirs["freezer"] == "" {
			return "", "", "", false
		}
	}
	return file, freeze, thaw, g.tree.exists(file)
}

// CanFreeze reports whether Freeze works.
func (g *Group) CanFreeze() bool { _, _, _, ok := g.freezeFile(); return ok }

// Freeze begins to stop every thread and does not wait: each stops at its next
// return to user space, as by SIGSTOP.
func (g *Group) Freeze() error {
	file, word, _, ok := g.freezeFile()
	if !ok {
		return unusable("no freezer")
	}
	return g.tree.write(file, word)
}

// Thaw lets them go on. Without a freezer there is nothing to thaw.
func (g *Group) Thaw() error {
	file, _, word, ok := g.freezeFile()
	if !ok {
		return nil
	}
	return g.tree.write(file, word)
}

// Frozen reports whether every thread has stopped.
func (g *Group) Frozen() bool {
	file, _, _, ok := g.freezeFile()
	if !ok {
		return false
	}
	if g.v2 {
		w := g.tree.words(filepath.Join(filepath.Dir(file), "cgroup.events"))
		i := slices.Index(w, "frozen")
		return i >= 0 && i+1 < len(w) && w[i+1] == "1"
	}
	return slices.Equal(g.tree.words(file), []string{"FROZEN"})
}

// Kill ends everything in the group. In version 1 a frozen process takes its
// SIGKILL only when it is thawed, which this does last.
func (g *Group) Kill() error {
	if g.v2 {
		err := g.tree.write(filepath.Join(g.dirs[""], "cgroup.kill"), "1")
		if !errors.Is(err, os.ErrNotExist) { // before Linux 5.14
			return err
		}
	}
	var all error
	for _, dir := range g.dirs {
		for _, w := range g.tree.words(filepath.Join(dir, "cgroup.procs")) {
			// A pid of a group that only QEMU was put into, read this moment.
			if pid, err := strconv.Atoi(w); err == nil && pid > 1 {
				if err := unix.Kill(pid, unix.SIGKILL); err != nil && !errors.Is(err, unix.ESRCH) {
					all = errors.Join(all, err)
				}
			}
		}
	}
	return errors.Join(all, g.Thaw())
}

// Remove removes the group after its processes have ended.
func (g *Group) Remove() error {
	if g == nil {
		return nil
	}
	var all error
	for _, dir := range g.dirs {
		all = errors.Join(all, RemoveAll(g.tree.path(dir)))
	}
	return all
}
