package guard

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"roseau/internal/base/clock"
	"roseau/internal/base/errs"
	"roseau/internal/core/vmguard"
	"roseau/internal/core/vmplan"
	"roseau/internal/driver/bridge"
	"roseau/internal/driver/qemu"
	"roseau/internal/driver/qmp"
)

// startLimit is how long QEMU may take until its monitor answers.
const startLimit = 20 * time.Second

// startQEMU starts it beside the loop, with -S and its ports attached, down and
// shut.
func (g *guard) startQEMU(ctx context.Context, incoming bool) {
	g.starting, g.killed = true, false
	gone := g.proc
	g.async(func() {
		if gone != nil {
			<-gone.Done()
		}
		p, mon, accel, err := g.launch(ctx, incoming)
		g.inLoop(func() {
			g.starting = false
			if err == nil {
				g.proc, g.mon = p, mon
				g.rec.PID, g.rec.Start, g.rec.Accel, g.rec.PoweredOn = p.PID, p.Start, accel, g.clock.Wall()
				g.rec.CPUModel = vmplan.CPUModel(vmplan.Accel(accel.Name), g.cpuModel(accel))
				g.writeRecord()
				g.watch(ctx, p)
				g.monitor(ctx, mon)
			}
			if g.killed {
				g.kill() // asked for meanwhile
				return
			}
			g.step(vmguard.QEMUStarted{Err: err})
		})
	})
}

// launch makes the taps, starts QEMU and connects to its monitor.
func (g *guard) launch(ctx context.Context, incoming bool) (p *qemu.Process, mon *qmp.Client, accel qemu.Accelerator, err error) {
	ctx, cancel := context.WithTimeout(ctx, startLimit)
	defer cancel()
	accel = g.accelerator(ctx)
	g.files.cleanQEMU()
	var taps []*os.File
	defer func() {
		for _, t := range taps {
			t.Close() // QEMU has its own
		}
		if err != nil && p != nil {
			p.Signal(unix.SIGKILL)
		}
	}()
	for _, q := range g.net.Ports {
		if err = bridge.WaitGone(ctx, q.Tap); err != nil { // of the QEMU before
			return nil, nil, accel, err
		}
		tap, err := bridge.OpenTap(q.Tap)
		if err != nil {
			return nil, nil, accel, err
		}
		taps = append(taps, tap)
	}
	if err = g.setNetwork(); err != nil {
		return nil, nil, accel, err
	}
	spec := g.spec(accel, incoming)
	plan, err := vmplan.Compile(spec)
	if err != nil {
		return nil, nil, accel, err
	}
	p, err = qemu.Start(qemu.Command{Argv: plan.Argv, Files: taps, Log: g.files.qemuLog(), User: g.user})
	if err != nil {
		return nil, nil, accel, err
	}
	g.confineQEMU(p.PID, spec.Limits())
	for {
		if mon, err = qmp.Dial(ctx, g.files.qmp()); err == nil {
			return p, mon, accel, nil
		}
		select {
		case <-p.Done():
			return p, nil, accel, errs.New(errs.Unavailable, "start qemu: it ended: %s", lastLine(g.files.qemuLog()))
		case <-ctx.Done():
			return p, nil, accel, errs.New(errs.Unavailable, "start qemu: no monitor within %v: %w", startLimit, err)
		case <-time.After(qemu.Poll):
		}
	}
}

func (g *guard) setNetwork() error {
	if len(g.net.Ports) == 0 {
		return nil
	}
	return bridge.Set(g.net)
}

func (g *guard) accelerator(ctx context.Context) qemu.Accelerator {
	switch g.cfg.Accel {
	case "kvm", "tcg":
		return qemu.Accelerator{Name: g.cfg.Accel}
	}
	return qemu.Detect(ctx, accelCache())
}

// cpuModel is the model asked for, under KVM else the cluster's common one; empty:
// the accelerator's default.
func (g *guard) cpuModel(accel qemu.Accelerator) string {
	if g.cfg.CPUModel == "" && accel.Name == string(vmplan.KVM) {
		return g.cfg.CommonCPU
	}
	return g.cfg.CPUModel
}

func (g *guard) spec(accel qemu.Accelerator, incoming bool) vmplan.Spec {
	s := vmplan.Spec{Name: g.cfg.Name, UUID: g.cfg.VM.String(), CPUs: g.cfg.CPUs, Memory: g.cfg.Memory,
		Accel: vmplan.Accel(accel.Name), CPUModel: g.cpuModel(accel), Incoming: incoming,
		QMPSocket: g.files.qmp(), SerialSocket: g.files.serial(), SerialLog: g.files.serialLog(), VNCSocket: g.files.vnc()}
	for i, d := range g.cfg.Disks {
		id := d.Volume.String()
		s.Disks = append(s.Disks, vmplan.Disk{Socket: g.files.nbd(i), Export: id,
			Serial: strings.ReplaceAll(id, "-", ""), Size: d.Size})
	}
	for i, n := range g.cfg.NICs {
		s.NICs = append(s.NICs, vmplan.NIC{FD: 3 + i, MAC: n.MAC})
	}
	return s
}

// lastLine is what QEMU said before it ended.
func lastLine(log string) string {
	b, err := os.ReadFile(log)
	if err != nil {
		return err.Error()
	}
	lines := strings.Split(strings.TrimSpace(string(b)), "\n")
	return lines[len(lines)-1]
}

// watch posts the end of the process.
func (g *guard) watch(ctx context.Context, p *qemu.Process) {
	g.async(func() {
		select {
		case <-ctx.Done():
			return
		case <-p.Done():
		}
		g.inLoop(func() {
			if g.proc != p {
				return
			}
			g.proc = nil
			if g.mon != nil {
				mon := g.mon
				g.mon = nil
				g.async(func() { mon.Close() })
			}
			g.rec.PID, g.rec.Start = 0, 0
			g.writeRecord()
			g.step(vmguard.QEMUExited{})
		})
	})
}

// connectQMP reaches an adopted QEMU's monitor, however long it takes: while
// its disks stall it answers nothing.
func (g *guard) connectQMP(ctx context.Context) {
	p := g.proc
	if p == nil {
		return
	}
	g.async(func() {
		for ctx.Err() == nil {
			select {
			case <-p.Done():
				return
			default:
			}
			mon, err := qmp.Dial(ctx, g.files.qmp())
			if err == nil {
				var st struct {
					Status string `json:"status"`
				}
				if err = mon.Run(ctx, "query-status", nil, &st); err == nil {
					g.inLoop(func() {
						g.mon = mon
						g.monitor(ctx, mon)
						g.step(vmguard.QMPUp{Status: st.Status})
					})
					return
				}
				mon.Close()
			}
			if clock.Sleep(ctx, 50*time.Millisecond) != nil {
				return
			}
		}
	})
}

// monitor turns QEMU's events into the core's.
func (g *guard) monitor(ctx context.Context, mon *qmp.Client) {
	g.async(func() {
		defer context.AfterFunc(ctx, func() { mon.Close() })()
		for e := range mon.Events() {
			if ev := translate(e); ev != nil {
				g.inLoop(func() {
					if g.mon != mon {
						return
					}
					if e.Name == "STOP" {
						g.haltedAt = e.Time
					}
					if st, ok := ev.(vmguard.StreamStatus); ok {
						g.streamEvent(st)
						return
					}
					g.step(ev)
				})
			}
		}
	})
}

func translate(e qmp.Event) vmguard.Event {
	switch e.Name {
	case "STOP":
		return vmguard.VCPUsStopped{}
	case "RESUME":
		return vmguard.VCPUsResumed{}
	case "SHUTDOWN":
		var d struct {
			Guest bool `json:"guest"`
		}
		if e.Decode(&d) == nil && d.Guest {
			return vmguard.GuestOff{}
		}
	case "BLOCK_IO_ERROR":
		var d struct {
			Action  string `json:"action"`
			NoSpace bool   `json:"nospace"`
		}
		if e.Decode(&d) == nil && d.Action == "stop" {
			return vmguard.IOError{NoSpace: d.NoSpace}
		}
	case "MIGRATION":
		var d struct {
			Status string `json:"status"`
		}
		if e.Decode(&d) == nil {
			return vmguard.StreamStatus{Status: d.Status}
		}
	}
	return nil
}

// fire sends a command without waiting.
func (g *guard) fire(command string, args any) {
	if g.mon == nil {
		g.log.Warn("no monitor for a command", "command", command)
		return
	}
	if err := g.mon.Fire(command, args); err != nil {
		g.log.Error("qmp", "cause", err)
	}
}

// kill ends QEMU; QEMUExited follows, also when there is none.
func (g *guard) kill() {
	switch {
	case g.proc != nil:
		g.proc.Signal(unix.SIGKILL)
		if g.group != nil {
			if err := g.group.Kill(); err != nil {
				g.log.Error("kill control group", "cause", err)
			}
		}
	case g.starting:
		g.killed = true
	default:
		g.post(vmguard.QEMUExited{})
	}
}

// run carries out a command within a time.
func runQMP(ctx context.Context, mon *qmp.Client, d time.Duration, command string, args, out any) error {
	ctx, cancel := context.WithTimeout(ctx, d)
	defer cancel()
	return mon.Run(ctx, command, args, out)
}

var errNoMonitor = errors.New("its QEMU has no monitor")

func noMonitor(what string) error { return fmt.Errorf("%s: %w", what, errNoMonitor) }
