package member

import (
	"fmt"
	"net"
	"net/netip"
	"slices"

	"roseau/internal/base/errs"
	"roseau/internal/model"
	"roseau/internal/nodeconf"
)

// NodeRequest says what a machine is called and where it is reached, when it
// makes or joins a cluster.
type NodeRequest struct {
	Name string `json:"name" maxLength:"63" doc:"name of the node"`
	// Addresses lists IP addresses a role; storage defaults to cluster.
	Addresses map[model.NetworkRole][]string `json:"addresses" doc:"IP addresses a role (cluster, storage), best first"`
	Uplinks   map[string]string              `json:"uplinks,omitempty" doc:"physical interface of each bridged network"`
}

// check refuses what cannot work and fills in defaults. own tells the addresses
// of this machine; nil skips that check.
func (r *NodeRequest) check(own []netip.Addr) error {
	if err := model.CheckName(model.KindNode, r.Name); err != nil {
		return err
	}
	if len(r.Addresses[model.RoleCluster]) == 0 {
		return errs.New(errs.Invalid, "node %s: no cluster address", r.Name).WithHint("give --address IP: an address of this machine that the other nodes reach")
	}
	if len(r.Addresses[model.RoleStorage]) == 0 {
		r.Addresses[model.RoleStorage] = r.Addresses[model.RoleCluster]
	}
	for role, addrs := range r.Addresses {
		if role != model.RoleCluster && role != model.RoleStorage && role != model.RoleVM {
			return errs.New(errs.Invalid, "node %s: unknown network role %q: want cluster, storage or vm", r.Name, role)
		}
		for _, a := range addrs {
			ip, err := netip.ParseAddr(a)
			if err != nil || ip.IsUnspecified() || ip.IsMulticast() {
				return errs.New(errs.Invalid, "node %s: %s address %q: want one IP address of this machine", r.Name, role, a)
			}
			// Any address of 127.0.0.0/8 is this machine's.
			if own != nil && !ip.IsLoopback() && !slices.Contains(own, ip) {
				return errs.New(errs.Invalid, "node %s: %s address %s is not an address of this machine", r.Name, role, a).
					WithHint("`ip address` shows what this machine has")
			}
		}
	}
	return nil
}

// ips returns all addresses for the certificate.
func (r *NodeRequest) ips() []net.IP {
	var out []net.IP
	for _, a := range nodeconf.AllAddresses(r.Addresses) {
		out = append(out, net.ParseIP(a))
	}
	return out
}

// ownAddresses lists the addresses of this machine.
func ownAddresses() ([]netip.Addr, error) {
	as, err := net.InterfaceAddrs()
	if err != nil {
		return nil, fmt.Errorf("list addresses of this machine: %w", err)
	}
	var out []netip.Addr
	for _, a := range as {
		if p, err := netip.ParsePrefix(a.String()); err == nil {
			out = append(out, p.Addr().Unmap())
		}
	}
	return out, nil
}
