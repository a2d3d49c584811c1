package guard

import (
	"log/slog"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"roseau/internal/core/vmplan"
	"roseau/internal/driver/cgroup"
	"roseau/internal/driver/qemu"
)

// confineQEMU puts a QEMU that has just begun to load itself into a group of its
// own. Where there is none to be had the VM runs without limits, and its status
// says why.
func (g *guard) confineQEMU(pid int, l vmplan.Limits) {
	group, err := cgroup.Make(g.cfg.VM.String()+"-"+g.cfg.Node.Short(), cgroup.Limits(l))
	if err == nil {
		err = group.Add(pid)
	}
	g.inLoop(func() { g.setGroup(group, err) })
}

func (g *guard) setGroup(group *cgroup.Group, err error) {
	g.group = group
	if err != nil {
		g.group, g.confine = nil, "none: "+err.Error()
		g.log.Warn("QEMU runs without limits of its own", "cause", err)
		return
	}
	g.confine = "cgroup " + string(group.Version()) + ": " + strings.Join(group.Controllers(), " ")
}

// adoptGroup finds the group that a predecessor made and sets its limits again:
// the supervisor's hook took them back.
func (g *guard) adoptGroup(pid int, accel qemu.Accelerator) {
	group, err := cgroup.Of(pid, g.cfg.VM.String())
	if err == nil {
		spec := g.spec(accel, false)
		err = group.Confine(cgroup.Limits(spec.Limits()))
		if err != nil {
			g.log.Warn("limit the adopted QEMU", "cause", err)
			err = nil // it can still be frozen and killed as one
		}
	}
	g.setGroup(group, err)
}

// goneLimit is how long a killed QEMU may take to be gone.
const goneLimit = 5 * time.Second

// removeGroup ends with the VM on this node.
func (g *guard) removeGroup() {
	group, p := g.group, g.proc
	g.group = nil
	if group == nil {
		return
	}
	g.async(func() {
		if p != nil { // it was killed, and takes its time
			select {
			case <-p.Done():
			case <-time.After(goneLimit):
			}
		}
		if err := group.Remove(); err != nil {
			g.log.Warn("remove control group", "cause", err)
		}
	})
}

// freeze stops every thread of QEMU: by its group, else by SIGSTOP.
func freeze(p *qemu.Process, group *cgroup.Group, log *slog.Logger) {
	if p == nil {
		return
	}
	if group.CanFreeze() {
		err := group.Freeze()
		if err == nil {
			return
		}
		log.Error("freeze control group: SIGSTOP instead", "cause", err)
	}
	p.Signal(unix.SIGSTOP)
}

// thaw undoes both, for a predecessor may have used either.
func thaw(p *qemu.Process, group *cgroup.Group, log *slog.Logger) {
	if p == nil {
		return
	}
	if group != nil {
		if err := group.Thaw(); err != nil {
			log.Error("thaw control group", "cause", err)
		}
	}
	p.Signal(unix.SIGCONT)
}
