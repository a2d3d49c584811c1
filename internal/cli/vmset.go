package cli

import (
	"net/http"
	"time"

	"github.com/spf13/cobra"

	"roseau/internal/base/errs"
	"roseau/internal/base/size"
	"roseau/internal/model"
	"roseau/internal/svc/vm"
)

func newVMSetCmd(a *app) *cobra.Command {
	var cpus, priority, restarts int
	var memory, ha string
	var after []string
	var delay time.Duration
	cmd := &cobra.Command{Use: "set VM", Short: "Change a VM; what the guest sees changes at its next start", Args: cobra.ExactArgs(1),
		Example: "  roseau vm set web --priority 50 --after dns,db --delay 10s\n  roseau vm set web --after ''\n  roseau vm set batch --ha best-effort --max-restarts 2",
		RunE: func(cmd *cobra.Command, args []string) error {
			var req vm.SetRequest
			f := cmd.Flags()
			if f.Changed("cpus") {
				req.CPUs = &cpus
			}
			if f.Changed("priority") {
				req.Priority = &priority
			}
			if f.Changed("ha") {
				m := model.HAMode(ha)
				req.HA = &m
			}
			if f.Changed("memory") {
				b, err := size.Parse(memory)
				if err != nil {
					return err
				}
				req.Memory = &b
			}
			if f.Changed("after") {
				if after == nil {
					after = []string{}
				}
				req.After = &after
			}
			if f.Changed("delay") {
				req.StartDelay = &delay
			}
			if f.Changed("max-restarts") {
				req.MaxRestarts = &restarts
			}
			if req == (vm.SetRequest{}) {
				return errs.New(errs.Invalid, "set vm %s: nothing to change", args[0]).WithHint("see `roseau vm set --help`")
			}
			v := new(model.VM)
			return a.change(cmd, http.MethodPatch, vmPath(args[0]), req, v, func() string { return "vm " + v.Name + " changed" })
		}}
	f := cmd.Flags()
	f.IntVar(&cpus, "cpus", 0, "virtual CPUs")
	f.StringVar(&memory, "memory", "", "memory")
	f.StringVar(&ha, "ha", "", "on, best-effort or off")
	f.IntVar(&priority, "priority", 0, "-100 to 100; higher starts first after a loss")
	f.StringSliceVar(&after, "after", nil, "VMs that must run before this one is started, separated by commas; '' takes them away")
	f.DurationVar(&delay, "delay", 0, "with --after: how long those must have run, 10s")
	f.IntVar(&restarts, "max-restarts", 0, "failures within ten minutes that make it failed, 1 to 100 (0: 5)")
	return cmd
}
