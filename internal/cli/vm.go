package cli

import (
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"roseau/internal/base/errs"
	"roseau/internal/base/size"
	"roseau/internal/model"
	"roseau/internal/svc/vm"
)

func newVMCmd(a *app) *cobra.Command {
	cmd := &cobra.Command{Use: "vm", Short: "Virtual machines"}
	cmd.AddCommand(
		&cobra.Command{Use: "list", Short: "List VMs", Args: cobra.NoArgs, RunE: func(cmd *cobra.Command, _ []string) error {
			var vs []*model.VM
			return a.get(cmd, "/v1/vms", &vs, func() *table { return vmTable(vs) })
		}},
		&cobra.Command{Use: "show VM", Short: "Show a VM", Args: cobra.ExactArgs(1), RunE: func(cmd *cobra.Command, args []string) error {
			v := new(vm.Info)
			return a.get(cmd, vmPath(args[0]), v, func() *table { return vmSheet(v) })
		}},
		newVMCreateCmd(a),
		newVMSetCmd(a),
		&cobra.Command{Use: "start VM", Short: "Start a VM on the best node", Args: cobra.ExactArgs(1), RunE: func(cmd *cobra.Command, args []string) error {
			return a.change(cmd, http.MethodPost, vmPath(args[0])+"/start", nil, nil, nil)
		}},
		newVMStopCmd(a),
		&cobra.Command{Use: "reset VM", Short: "Press the reset button", Args: cobra.ExactArgs(1), RunE: func(cmd *cobra.Command, args []string) error {
			return a.change(cmd, http.MethodPost, vmPath(args[0])+"/reset", nil, nil, nil)
		}},
		newVMMigrateCmd(a),
		newVMPressCmd(a, "pause", "Stop the processors of a VM"),
		newVMPressCmd(a, "resume", "Let a paused VM go on, also one that an I/O error paused"),
		newVMPressCmd(a, "reboot", "Power a VM off by its button, then the plug, and on again"),
		destroys(&cobra.Command{Use: "delete VM", Short: "Delete a stopped VM and its volumes", Args: cobra.ExactArgs(1), RunE: func(cmd *cobra.Command, args []string) error {
			return a.remove(cmd, vmPath(args[0]), "vm "+args[0])
		}}),
		newVMConsoleCmd(a),
		newVMSnapshotCmd(a),
		newVMScreenshotCmd(a),
	)
	return cmd
}

func vmPath(ref string) string { return "/v1/vms/" + url.PathEscape(ref) }

func newVMCreateCmd(a *app) *cobra.Command {
	var req vm.CreateRequest
	var memory, image string
	var disks, networks []string
	var noHA bool
	cmd := &cobra.Command{Use: "create NAME", Short: "Create a VM", Args: cobra.ExactArgs(1),
		Example: "  roseau vm create web --image debian --memory 512MiB --network lan --start\n  roseau vm create db --cpus 2 --disk size=20GiB --disk volume=old-data",
		RunE: func(cmd *cobra.Command, args []string) error {
			var err error
			req.Name = args[0]
			if req.Memory, err = size.Parse(memory); err != nil {
				return err
			}
			if req.Disks, err = parseDisks(image, disks); err != nil {
				return err
			}
			for _, n := range networks {
				nic, err := parseNIC(n)
				if err != nil {
					return err
				}
				req.NICs = append(req.NICs, nic)
			}
			if noHA {
				if cmd.Flags().Changed("ha") {
					return errs.New(errs.Invalid, "flags --no-ha and --ha contradict each other")
				}
				req.HA = model.HAOff
			}
			return a.change(cmd, http.MethodPost, "/v1/vms", req, nil, nil)
		}}
	f := cmd.Flags()
	f.IntVar(&req.CPUs, "cpus", 1, "virtual CPUs, 1 to 64")
	f.StringVar(&memory, "memory", "512MiB", "memory")
	f.StringVar(&image, "image", "", "image of the first disk")
	f.StringArrayVar(&disks, "disk", nil, "size=8GiB, image=NAME[,size=…] or volume=NAME; repeat for more")
	f.StringArrayVar(&networks, "network", nil, "NAME[,mac=52:54:00:…][,allow-mac-spoofing]; repeat for more")
	f.StringVar(&req.Pool, "pool", "", "pool of new disks (default: the only one)")
	f.StringVar((*string)(&req.HA), "ha", "on", "on, best-effort or off")
	f.BoolVar(&noHA, "no-ha", false, "the same as --ha off: not restarted when its node is lost")
	f.IntVar(&req.Priority, "priority", 0, "-100 to 100; higher is restarted first")
	f.StringVar(&req.Accel, "accel", "auto", "auto, kvm or tcg")
	f.StringVar(&req.CPUModel, "cpu-model", "", "QEMU's name of a CPU (default: one that every node has)")
	f.BoolVar(&req.Start, "start", false, "start it")
	return cmd
}

// parseDisks reads --image and --disk. A size alone after --image makes the
// image's disk larger only if it is written image=NAME,size=….
func parseDisks(image string, specs []string) ([]vm.DiskSource, error) {
	var out []vm.DiskSource
	if image != "" {
		out = append(out, vm.DiskSource{Image: image})
	}
	for _, spec := range specs {
		var d vm.DiskSource
		for part := range strings.SplitSeq(spec, ",") {
			k, v, ok := strings.Cut(part, "=")
			if !ok {
				k, v = "size", part
			}
			var err error
			switch k {
			case "size":
				d.Size, err = size.Parse(v)
			case "image":
				d.Image = v
			case "volume":
				d.Volume = v
			default:
				err = errs.New(errs.Invalid, "flag --disk %q: unknown key %q, want size, image or volume", spec, k)
			}
			if err != nil {
				return nil, err
			}
		}
		out = append(out, d)
	}
	return out, nil
}

func parseNIC(spec string) (vm.NIC, error) {
	name, rest, _ := strings.Cut(spec, ",")
	n := vm.NIC{Network: name}
	for part := range strings.SplitSeq(rest, ",") {
		switch k, v, _ := strings.Cut(part, "="); k {
		case "":
		case "mac":
			n.MAC = v
		case "allow-mac-spoofing":
			n.AllowMACSpoofing = true
		default:
			return n, errs.New(errs.Invalid, "flag --network %q: unknown key %q, want mac or allow-mac-spoofing", spec, k)
		}
	}
	return n, nil
}

func newVMStopCmd(a *app) *cobra.Command {
	var req vm.StopRequest
	cmd := &cobra.Command{Use: "stop VM", Short: "Stop a VM: its power button, then the plug after a minute", Args: cobra.ExactArgs(1), RunE: func(cmd *cobra.Command, args []string) error {
		return a.change(cmd, http.MethodPost, vmPath(args[0])+"/stop", req, nil, nil)
	}}
	cmd.Flags().BoolVar(&req.Force, "force", false, "pull the plug at once")
	return cmd
}

func newVMMigrateCmd(a *app) *cobra.Command {
	var req vm.MigrateRequest
	var bandwidth string
	var cancel bool
	cmd := &cobra.Command{Use: "migrate VM [NODE]", Short: "Move a running VM, to the best node or to NODE",
		Long: "Moves a running VM without stopping it. The task shows the chosen node and why, the network that carries the memory, what is sent\n" +
			"and dirtied a second, and the time that is left. A guest that dirties faster than it is sent is slowed down step by step (80 % at most),\n" +
			"its downtime limit raised to 2 s; if it still does not converge the migration ends, says why, and the VM stays. A node takes part in\n" +
			"two migrations at a time; further ones wait.",
		Args: cobra.RangeArgs(1, 2), RunE: func(cmd *cobra.Command, args []string) error {
			if cancel {
				if len(args) == 2 {
					return errs.New(errs.Invalid, "cancel migration of vm %s: node %s is not wanted", args[0], args[1])
				}
				return a.change(cmd, http.MethodDelete, vmPath(args[0])+"/migrate", nil, nil, nil)
			}
			if len(args) == 2 {
				req.Node = args[1]
			}
			if req.GiveUpAfter < 0 {
				return errs.New(errs.Invalid, "flag --give-up-after %s: want a time above 0", req.GiveUpAfter)
			}
			if bandwidth != "" {
				var err error
				if req.Bandwidth, err = size.Parse(bandwidth); err != nil {
					return err
				}
			}
			return a.change(cmd, http.MethodPost, vmPath(args[0])+"/migrate", req, nil, nil)
		}}
	cmd.Flags().StringVar(&bandwidth, "bandwidth", "", "most that is sent a second, e.g. 100MiB (default: no bound)")
	cmd.Flags().StringVar(&req.Network, "network", "", "network that carries the memory: storage or cluster (default: storage, cluster if that is cut)")
	cmd.Flags().DurationVar(&req.GiveUpAfter, "give-up-after", 0, "call it off if it is not through by then, e.g. 2m (default: only when it is hopeless)")
	cmd.Flags().BoolVar(&cancel, "cancel", false, "call the VM's migration off: it stays where it is")
	a.dryRunFlag(cmd)
	return cmd
}

// newVMPressCmd is a verb without arguments or flags.
func newVMPressCmd(a *app, verb, short string) *cobra.Command {
	return &cobra.Command{Use: verb + " VM", Short: short, Args: cobra.ExactArgs(1), RunE: func(cmd *cobra.Command, args []string) error {
		return a.change(cmd, http.MethodPost, vmPath(args[0])+"/"+verb, nil, nil, nil)
	}}
}

func vmTable(vs []*model.VM) *table {
	t := newTable("NAME", "STATE", "NODE", "CPUS", "MEMORY", "HA", "UP", "REASON")
	for _, v := range vs {
		state := string(v.Status.State)
		if v.Deleting {
			state = "deleting"
		}
		up := ""
		if v.Status.State == model.VMRunning {
			up = ago(time.Now(), v.Status.Started)
		}
		t.row(v.Name, state, v.Status.Node, v.Spec.CPUs, v.Spec.Memory, v.Spec.HA, up, v.Status.Reason)
	}
	return t
}

func vmSheet(v *vm.Info) *table {
	st := &v.Status
	t := newSheet().row("name", v.Name).row("id", v.ID).row("state", st.State).row("node", st.Node)
	if st.Reason != "" {
		t.row("reason", st.Reason)
	}
	if len(st.Pauses) > 0 {
		t.row("paused for", strings.Join(st.Pauses, ", "))
	}
	t.row("cpus", v.Spec.CPUs).row("memory", v.Spec.Memory).row("ha", v.Spec.HA).row("priority", v.Spec.Priority)
	if len(v.Spec.After) > 0 {
		t.row("starts after", fmt.Sprintf("%s, %s later", strings.Join(v.Spec.After, ", "), v.Spec.StartDelay))
	}
	if st.CPUModel != "" {
		t.row("cpu model", st.CPUModel)
	}
	if st.Accel != "" {
		t.row("accelerator", st.Accel)
	}
	if !st.Started.IsZero() {
		t.row("started", st.Started.Local().Format(time.RFC3339))
	}
	t.row("restarts", st.Restarts)
	if m := st.Migration; m != nil {
		text := fmt.Sprintf("%s to %s: %s", m.From, m.To, m.Phase)
		if m.Downtime > 0 {
			text += fmt.Sprintf(", downtime %d ms", m.Downtime.Milliseconds())
		}
		if m.Error != "" {
			text += ", " + m.Error
		}
		t.row("last migration", text)
	}
	for i, d := range v.Spec.Disks {
		health := ""
		for _, x := range v.Volumes {
			if x.Name == d.Volume {
				health = fmt.Sprintf("  %s, %d copies in sync", healthText(&x.Status), x.Status.Copies)
			}
		}
		t.row(fmt.Sprintf("disk %d", i), fmt.Sprintf("%s  %s%s", d.Volume, d.Size, health))
	}
	for i, n := range v.Spec.NICs {
		t.row(fmt.Sprintf("nic %d", i), n.Network+"  "+n.MAC)
	}
	return t
}
