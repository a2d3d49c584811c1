package bridge

import (
	"fmt"
	"net"
	"strings"

	"roseau/internal/base/errs"
)

// Port is one interface of a VM.
type Port struct {
	Tap    string `json:"tap"`    // at most 15 bytes
	Bridge string `json:"bridge"` // made if absent, unless Uplink is a bridge itself
	// Uplink is the node's interface to the physical network. Empty: none. If it
	// is a bridge, taps join it directly and Bridge is not used.
	Uplink           string `json:"uplink,omitempty"`
	MAC              string `json:"mac"`
	AllowMACSpoofing bool   `json:"allow_mac_spoofing,omitempty"`
}

// Config is everything that a VM has on this node's network.
type Config struct {
	Table string `json:"table"` // nftables table, one a VM
	Ports []Port `json:"ports"`
}

// Test is what a rule looks for in a frame, besides the port that it came from.
type Test uint8

// The tests.
const (
	NotAlive     Test = iota + 1 // the port is not in the set "alive"
	ForeignMAC                   // the Ethernet source is not the port's
	ForeignARPHW                 // an ARP whose sender hardware address is not the port's
)

// Rule drops the frames from Tap that Test finds.
type Rule struct {
	Tap  string
	Test Test
	MAC  net.HardwareAddr // of ForeignMAC and ForeignARPHW
}

// Plan is the table of a VM, as data.
type Plan struct {
	Table string
	Rules []Rule
}

// Names of the table's parts.
const (
	aliveSet  = "alive"
	portChain = "from_guest"
)

// Compile checks c and returns its table.
func Compile(c Config) (Plan, error) {
	p := Plan{Table: c.Table}
	bad := func(format string, args ...any) error {
		return errs.New(errs.Invalid, "plan network table %s: %s", c.Table, fmt.Sprintf(format, args...))
	}
	if c.Table == "" || len(c.Table) > 64 {
		return Plan{}, bad("the name has %d bytes, want 1 to 64", len(c.Table))
	}
	seen := map[string]bool{}
	for _, q := range c.Ports {
		mac, err := net.ParseMAC(q.MAC)
		switch {
		case err != nil || len(mac) != 6:
			return Plan{}, bad("MAC address %q of port %s is not one", q.MAC, q.Tap)
		case mac[0]&1 != 0:
			return Plan{}, bad("MAC address %q of port %s is a multicast address", q.MAC, q.Tap)
		case q.Tap == "" || len(q.Tap) > 15 || seen[q.Tap]:
			return Plan{}, bad("port name %q is empty, too long, or used twice", q.Tap)
		}
		seen[q.Tap] = true
		// Silence first: whatever else is decided, a silent port says nothing.
		p.Rules = append(p.Rules, Rule{Tap: q.Tap, Test: NotAlive})
		if !q.AllowMACSpoofing {
			p.Rules = append(p.Rules, Rule{Tap: q.Tap, Test: ForeignMAC, MAC: mac},
				Rule{Tap: q.Tap, Test: ForeignARPHW, MAC: mac})
		}
	}
	return p, nil
}

// Text is the plan in the language of nft.
func (p Plan) Text() string {
	var b strings.Builder
	fmt.Fprintf(&b, "table bridge %s {\n", p.Table)
	fmt.Fprintf(&b, "\tset %s {\n\t\ttype ifname\n\t\tflags timeout\n\t}\n", aliveSet)
	fmt.Fprintf(&b, "\tchain %s {\n\t\ttype filter hook prerouting priority -300; policy accept;\n", portChain)
	for _, r := range p.Rules {
		fmt.Fprintf(&b, "\t\tiifname %q ", r.Tap)
		switch r.Test {
		case NotAlive:
			fmt.Fprintf(&b, "iifname != @%s drop\n", aliveSet)
		case ForeignMAC:
			fmt.Fprintf(&b, "ether saddr != %s drop\n", r.MAC)
		case ForeignARPHW:
			fmt.Fprintf(&b, "arp saddr ether != %s drop\n", r.MAC)
		}
	}
	b.WriteString("\t}\n}\n")
	return b.String()
}
