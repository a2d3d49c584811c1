package cli

import (
	"fmt"
	"net/http"
	"net/url"

	"github.com/spf13/cobra"

	driver "roseau/internal/driver/bmc"
	"roseau/internal/svc/bmc"
)

func nodePath(node string) string { return "/v1/nodes/" + url.PathEscape(node) }

// newNodePower is `node power`.
func newNodePower(a *app) *cobra.Command {
	cmd := &cobra.Command{Use: "power", Short: "Switch a node's power by its BMC, or read it",
		Long: "Orders wait until the BMC reads back what was ordered. A node that loses its power this way is treated as any lost node: its machines are\nrestarted elsewhere when their leases have ended."}
	verb := func(action driver.PowerAction, short string) *cobra.Command {
		return &cobra.Command{Use: string(action) + " NODE", Short: short, Args: cobra.ExactArgs(1), RunE: func(cmd *cobra.Command, args []string) error {
			return a.change(cmd, http.MethodPost, nodePath(args[0])+"/power", bmc.PowerRequest{Action: action}, nil, nil)
		}}
	}
	cmd.AddCommand(
		&cobra.Command{Use: "status NODE", Short: "Say whether a node has power", Args: cobra.ExactArgs(1), RunE: func(cmd *cobra.Command, args []string) error {
			var p bmc.PowerAnswer
			return a.get(cmd, nodePath(args[0])+"/power", &p, func() *table { return newSheet().row("node", p.Node).row("power", p.Power) })
		}},
		verb(driver.PowerOn, "Switch a node on"),
		confirmed(verb(driver.PowerOff, "Take a node's power, at once"), "it takes the power from a running machine"),
		confirmed(verb(driver.PowerCycle, "Take a node's power and give it again"), "it takes the power from a running machine"),
		confirmed(verb(driver.PowerSoft, "Press a node's power button: its system shuts down by itself"), "it shuts a machine down"),
	)
	return cmd
}

func newNodeLocate(a *app) *cobra.Command {
	var req bmc.IdentifyRequest
	cmd := &cobra.Command{Use: "locate NODE", Short: "Switch on the LED by which a person finds a node (by its BMC)", Args: cobra.ExactArgs(1), RunE: func(cmd *cobra.Command, args []string) error {
		return a.change(cmd, http.MethodPost, nodePath(args[0])+"/locate", req, nil, func() string {
			if req.Off {
				return "the LED of node " + args[0] + " is off"
			}
			return "the LED of node " + args[0] + " is on; `roseau node locate " + args[0] + " --off` ends it"
		})
	}}
	cmd.Flags().BoolVar(&req.Off, "off", false, "switch it off")
	return cmd
}

// newNodeBMC is `node bmc`.
func newNodeBMC(a *app) *cobra.Command {
	cmd := &cobra.Command{Use: "bmc", Short: "The management controllers of the nodes",
		Long: "A BMC powers a node, is looked through, and says what became of a node that was lost. It is no fence: no restart of a machine waits for one,\nand an unreachable BMC delays nothing."}
	cmd.AddCommand(newBMCSet(a),
		&cobra.Command{Use: "show NODE", Short: "Show the settings of a node's BMC", Args: cobra.ExactArgs(1), RunE: func(cmd *cobra.Command, args []string) error {
			s := new(bmc.Shown)
			return a.get(cmd, nodePath(args[0])+"/bmc", s, func() *table { return bmcSheet(s) })
		}},
		&cobra.Command{Use: "test NODE", Short: "Ask a node's BMC who and how it is", Args: cobra.ExactArgs(1), RunE: func(cmd *cobra.Command, args []string) error {
			t := new(bmc.Test)
			return a.change(cmd, http.MethodPost, nodePath(args[0])+"/bmc/test", nil, t, func() string { return testText(t) })
		}},
		confirmed(&cobra.Command{Use: "remove NODE", Short: "Forget a node's BMC and its password", Args: cobra.ExactArgs(1), RunE: func(cmd *cobra.Command, args []string) error {
			return a.change(cmd, http.MethodDelete, nodePath(args[0])+"/bmc", nil, nil, func() string { return "the BMC of node " + args[0] + " is forgotten" })
		}}, "it forgets how the node is powered"),
		&cobra.Command{Use: "sensors NODE", Short: "Read a node's sensors", Args: cobra.ExactArgs(1), RunE: func(cmd *cobra.Command, args []string) error {
			var l []driver.Sensor
			return a.get(cmd, nodePath(args[0])+"/bmc/sensors", &l, func() *table {
				t := newTable("SENSOR", "VALUE", "UNIT", "HEALTH")
				for _, s := range l {
					v := ""
					if !s.NoValue {
						v = fmt.Sprintf("%g", s.Value)
					}
					t.row(s.Name, v, s.Unit, s.Health)
				}
				return t
			})
		}},
		newBMCBoot(a), newBMCMedia(a), newBMCAddress(a), newBMCConsole(a))
	return cmd
}

func newBMCSet(a *app) *cobra.Command {
	var req bmc.SetRequest
	var file string
	cmd := &cobra.Command{Use: "set NODE", Short: "Say how a node's BMC is reached", Args: cobra.ExactArgs(1),
		Long: "The password is typed at a prompt, or read by --password-file (- is standard input); it goes to the cluster's secret store and no command shows it.\n" +
			"The BMC is tested first. Of a Redfish service the certificate that it shows now is pinned, and printed: compare it with the BMC's own page.",
		Example: "  roseau node bmc set n1 --address 10.0.0.21 --user admin\n  roseau node bmc set n1 --address ipmi://10.0.0.21 --user admin --password-file /root/bmc-password",
		RunE: func(cmd *cobra.Command, args []string) error {
			password, err := readSecret(cmd, "password of "+req.User+" on the BMC", file, "--password-file")
			if err != nil {
				return err
			}
			req.Password = password
			s := new(bmc.Shown)
			return a.change(cmd, http.MethodPut, nodePath(args[0])+"/bmc", req, s, func() string {
				text := "the BMC of node " + args[0] + " is set"
				if s.Fingerprint != "" {
					text += "\npinned certificate, SHA-256: " + s.Fingerprint
				}
				return text
			})
		}}
	f := cmd.Flags()
	f.StringVar(&req.Address, "address", "", "HOST, https://HOST:PORT (Redfish) or ipmi://HOST:PORT")
	f.StringVar(&req.User, "user", "", "user on the BMC")
	f.StringVar(&file, "password-file", "", "file with the password; - is standard input (default: ask)")
	f.StringVar(&req.Fingerprint, "fingerprint", "", "SHA-256 that its certificate must have (default: the one pinned before, else the one that it shows)")
	f.BoolVar(&req.NoTest, "no-test", false, "do not ask the BMC: it does not answer now")
	cmd.MarkFlagRequired("address")
	cmd.MarkFlagRequired("user")
	return cmd
}

func bmcSheet(s *bmc.Shown) *table {
	t := newSheet().row("node", s.Node).row("protocol", s.Protocol).row("host", s.Host)
	if s.Port != 0 {
		t.row("port", s.Port)
	}
	t.row("user", s.User).row("password", "in the secret store")
	if s.Fingerprint != "" {
		t.row("certificate", s.Fingerprint)
	}
	t.row("system uuid", s.UUID).row("node uuid", s.NodeUUID).row("set", when(s.Set))
	if r := s.Report; r != nil {
		t.row("looked", when(r.Looked)).row("found", r.Power)
		if r.Error != "" {
			t.row("error", r.Error)
		}
		if r.Off != nil {
			t.row("known off", "since "+when(r.Off.Since)+", switched off by Roseau and read back")
		}
	}
	return t
}

func testText(t *bmc.Test) string {
	text := fmt.Sprintf("power %s; %s %s, serial %s, BMC firmware %s; %s", t.Power, t.Manufacturer, t.Model, t.Serial, t.Firmware, t.Match)
	if t.Identify {
		text += "; its LED is lit"
	}
	if t.Boot != "" {
		text += "; starts from " + t.Boot
	}
	if t.Media != "" {
		text += "; in its drive " + t.Media
	}
	return text
}

func newBMCBoot(a *app) *cobra.Command {
	var always bool
	cmd := &cobra.Command{Use: "boot NODE none|disk|pxe|cd|setup", Short: "Say where a node starts from, the next time", Args: cobra.ExactArgs(2), RunE: func(cmd *cobra.Command, args []string) error {
		req := bmc.BootRequest{Device: driver.BootDevice(args[1]), Always: always}
		return a.change(cmd, http.MethodPost, nodePath(args[0])+"/bmc/boot", req, nil, func() string { return "node " + args[0] + " will start from: " + args[1] })
	}}
	cmd.Flags().BoolVar(&always, "always", false, "each time, not only the next")
	return cmd
}

func newBMCMedia(a *app) *cobra.Command {
	return &cobra.Command{Use: "media NODE [URL]", Short: "Put an image into a node's virtual drive; without a URL take it out", Args: cobra.RangeArgs(1, 2), RunE: func(cmd *cobra.Command, args []string) error {
		req, done := bmc.MediaRequest{}, "the virtual drive of node "+args[0]+" is empty"
		if len(args) == 2 {
			req.Image, done = args[1], "the virtual drive of node "+args[0]+" has "+args[1]
		}
		return a.change(cmd, http.MethodPost, nodePath(args[0])+"/bmc/media", req, nil, func() string { return done })
	}}
}

func newBMCAddress(a *app) *cobra.Command {
	var n driver.Network
	cmd := &cobra.Command{Use: "address NODE", Short: "Read a BMC's own address, or change it", Args: cobra.ExactArgs(1),
		Long: "Changed, the BMC may be gone before it has answered: set it anew under its new address (`node bmc set`).",
		RunE: func(cmd *cobra.Command, args []string) error {
			path := nodePath(args[0]) + "/bmc/address"
			if n == (driver.Network{}) {
				return a.get(cmd, path, &n, func() *table {
					return newSheet().row("dhcp", yes(n.DHCP)).row("address", n.Address).row("netmask", n.Netmask).row("gateway", n.Gateway)
				})
			}
			if err := n.Check(); err != nil {
				return err
			}
			return a.change(cmd, http.MethodPut, path, n, nil, func() string { return "the BMC of node " + args[0] + " has its new address; now `roseau node bmc set`" })
		}}
	cmd.Flags().BoolVar(&n.DHCP, "dhcp", false, "let it ask for one")
	cmd.Flags().StringVar(&n.Address, "ip", "", "IPv4 address")
	cmd.Flags().StringVar(&n.Netmask, "netmask", "", "for example 255.255.255.0")
	cmd.Flags().StringVar(&n.Gateway, "gateway", "", "IPv4 address of its gateway")
	return confirmedIf(cmd, "it can cut the BMC off", func() bool { return n != (driver.Network{}) })
}

func newBMCConsole(a *app) *cobra.Command {
	return &cobra.Command{Use: "console NODE", Short: "Attach to a node's serial port by its BMC (IPMI; Ctrl-] leaves)", Args: cobra.ExactArgs(1), RunE: func(cmd *cobra.Command, args []string) error {
		return a.console(cmd, "node "+args[0], nodePath(args[0])+"/bmc", nodePath(args[0])+"/bmc/console")
	}}
}
