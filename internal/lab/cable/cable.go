// Package cable is the network of a lab: three switches (cluster, storage, vm),
// each a bridge in a namespace of its own, the cables from them to the nodes,
// and an outside host on the vm network.
//
// Nothing is made in the host's own network namespace and no namespace has a
// name: all of them end with the file descriptors held here, thus with the
// process. A cable's node end is in the node's namespace and ends with it.
package cable

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sort"
	"sync"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"

	"roseau/internal/base/errs"
)

// Network is one of the lab's networks.
type Network struct {
	Name   string       // cluster, storage, vm
	NodeIf string       // name of the cable's end in a node
	Prefix netip.Prefix // of the nodes; the vm network has none: the bridge above it takes the address
}

// Networks are the three of every lab. Two labs use the same addresses: they
// never meet.
var Networks = []Network{
	{Name: "cluster", NodeIf: "cl0", Prefix: netip.MustParsePrefix("10.203.0.0/24")},
	{Name: "storage", NodeIf: "st0", Prefix: netip.MustParsePrefix("10.204.0.0/24")},
	{Name: "vm", NodeIf: "vm0"},
}

// Outside is the host beside the cluster on the vm network: clients and drills.
const (
	OutsideIf      = "out0"
	OutsideAddress = "10.202.255.254/16"
)

// VMAddress is the address that node number n takes on the vm network.
func VMAddress(n int) netip.Prefix {
	return netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 202, 6, byte(10 + n)}), 16)
}

// NodeAddress returns the address of node number n (from 1) on net, invalid if
// the lab gives none.
func (w Network) NodeAddress(n int) netip.Prefix {
	if !w.Prefix.IsValid() {
		return netip.Prefix{}
	}
	a := w.Prefix.Addr().As4()
	a[3] = byte(10 + n)
	return netip.PrefixFrom(netip.AddrFrom4(a), w.Prefix.Bits())
}

// ControllerAddress is where the management controller of node number n is, on
// the cluster network.
func ControllerAddress(n int) netip.Prefix {
	return netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 203, 0, byte(100 + n)}), 24)
}

// ListenAt gives a switch itself an address, for a device that stands beside the
// nodes, and listens there. The listener is the caller's.
func (b *Board) ListenAt(network string, address netip.Prefix, port int) (l net.Listener, err error) {
	if err := b.SetAddress(network, address, true); err != nil {
		return nil, err
	}
	ns, err := b.Namespace(network)
	if err != nil {
		return nil, err
	}
	err = Within(ns, func() error {
		l, err = net.Listen("tcp", netip.AddrPortFrom(address.Addr(), uint16(port)).String())
		return err
	})
	return l, err
}

// SetAddress gives a switch an address, or takes it away: then nobody answers
// there.
func (b *Board) SetAddress(network string, address netip.Prefix, up bool) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	s := b.switches[network]
	if s == nil {
		return errs.New(errs.Invalid, "find network %q: want cluster, storage or vm", network)
	}
	link, err := s.handle.LinkByName("sw")
	if err != nil {
		return err
	}
	addr, err := netlink.ParseAddr(address.String())
	if err != nil {
		return err
	}
	if up {
		return s.handle.AddrReplace(link, addr)
	}
	return s.handle.AddrDel(link, addr)
}

// ByName returns the networks called name, all for "".
func ByName(name string) ([]Network, error) {
	if name == "" {
		return Networks, nil
	}
	for _, w := range Networks {
		if w.Name == name {
			return []Network{w}, nil
		}
	}
	return nil, errs.New(errs.Invalid, "find network %q: want cluster, storage or vm", name)
}

// Board is the set of switches.
type Board struct {
	outside *os.File

	mu       sync.Mutex // protects below
	switches map[string]*swtch
	cut      map[string]map[string]bool // node -> network -> true
	groups   [][]string                 // partition in force; nil = none
}

type swtch struct {
	ns     *os.File
	handle *netlink.Handle
	ports  map[string]int // node -> interface index
	loss   map[string]int // node -> percent of its frames that are lost; absent: none
}

// NewBoard makes the switches and the outside host.
func NewBoard() (b *Board, err error) {
	b = &Board{switches: map[string]*swtch{}, cut: map[string]map[string]bool{}}
	defer func() {
		if err != nil {
			err = errors.Join(err, b.Close())
		}
	}()
	for _, w := range Networks {
		s, err := newSwitch()
		if err != nil {
			return b, fmt.Errorf("make switch %s: %w", w.Name, err)
		}
		b.switches[w.Name] = s
	}
	if b.outside, err = newNamespace(); err != nil {
		return b, err
	}
	if err := b.switches["vm"].plug("outside", 2000, OutsideIf, mac(0, 2), b.outside); err != nil {
		return b, fmt.Errorf("make outside host: %w", err)
	}
	return b, within(b.outside, func(h *netlink.Handle) error {
		return configure(h, OutsideIf, OutsideAddress)
	})
}

func newSwitch() (s *swtch, err error) {
	s = &swtch{ports: map[string]int{}, loss: map[string]int{}}
	if s.ns, err = newNamespace(); err != nil {
		return nil, err
	}
	if s.handle, err = netlink.NewHandleAt(netns.NsHandle(s.ns.Fd())); err != nil {
		return nil, errors.Join(err, s.ns.Close())
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.Flags = "sw", net.FlagUp
	// One of its own: a bridge without takes its ports' lowest, and changes it when
	// a node loses power, under the eyes of those who talk to it.
	attrs.HardwareAddr = mac(0, 0)
	off := false
	if err := s.handle.LinkAdd(&netlink.Bridge{LinkAttrs: attrs, MulticastSnooping: &off}); err != nil {
		return nil, errors.Join(err, s.close())
	}
	return s, nil
}

func (s *swtch) close() error {
	s.handle.Close()
	return s.ns.Close()
}

// plug adds a port called node with a fixed interface index, so that recorders
// know it again after the node was cut, and its cable into peer.
func (s *swtch) plug(node string, index int, peerName string, hw net.HardwareAddr, peer *os.File) error {
	bridge, err := s.handle.LinkByName("sw")
	if err != nil {
		return err
	}
	if old, err := s.handle.LinkByName(node); err == nil {
		// The far end's namespace is torn down by the kernel a moment after its last process.
		if err := s.handle.LinkDel(old); err != nil {
			return fmt.Errorf("remove old cable of %s: %w", node, err)
		}
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.Index, attrs.MasterIndex = node, index, bridge.Attrs().Index
	veth := &netlink.Veth{LinkAttrs: attrs, PeerName: peerName, PeerHardwareAddr: hw, PeerNamespace: netlink.NsFd(peer.Fd())}
	if err := s.handle.LinkAdd(veth); err != nil {
		return fmt.Errorf("add cable of %s: %w", node, err)
	}
	link, err := s.handle.LinkByName(node)
	if err != nil {
		return err
	}
	s.ports[node] = link.Attrs().Index
	return s.handle.LinkSetUp(link)
}

// mac is the hardware address of node number n's end on network number w.
func mac(n, w int) net.HardwareAddr { return net.HardwareAddr{0x02, 0x52, 0x53, 0, byte(w), byte(n)} }

// within runs f with a netlink handle of ns.
func within(ns *os.File, f func(*netlink.Handle) error) error {
	h, err := netlink.NewHandleAt(netns.NsHandle(ns.Fd()))
	if err != nil {
		return err
	}
	defer h.Close()
	return f(h)
}

// configure sets loopback and one link up and gives it an address ("" = none).
func configure(h *netlink.Handle, name, cidr string) error {
	for _, up := range []string{"lo", name} {
		link, err := h.LinkByName(up)
		if err != nil {
			return fmt.Errorf("configure link %s: %w", up, err)
		}
		if up == name && cidr != "" {
			addr, err := netlink.ParseAddr(cidr)
			if err != nil {
				return err
			}
			if err := h.AddrAdd(link, addr); err != nil {
				return fmt.Errorf("configure link %s: %w", up, err)
			}
		}
		if err := h.LinkSetUp(link); err != nil {
			return fmt.Errorf("configure link %s: %w", up, err)
		}
	}
	return nil
}

// Plug connects node number n, whose namespace is ns, to all networks and
// configures its ends. Cables that were cut stay cut.
func (b *Board) Plug(node string, n int, ns *os.File) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	for i, w := range Networks {
		if err := b.switches[w.Name].plug(node, 1000+n, w.NodeIf, mac(n, i), ns); err != nil {
			return fmt.Errorf("plug node %s into %s: %w", node, w.Name, err)
		}
		cidr := ""
		if a := w.NodeAddress(n); a.IsValid() {
			cidr = a.String()
		}
		if err := within(ns, func(h *netlink.Handle) error { return configure(h, w.NodeIf, cidr) }); err != nil {
			return fmt.Errorf("plug node %s into %s: %w", node, w.Name, err)
		}
		if b.cut[node][w.Name] {
			if err := b.setPort(node, w.Name, false); err != nil {
				return err
			}
		}
	}
	return nil
}

// Unpowered takes the carrier from all cables of a node without counting them
// as cut: what a node without power does.
func (b *Board) Unpowered(node string) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	var err error
	for _, w := range Networks {
		err = errors.Join(err, b.setPort(node, w.Name, false))
	}
	return err
}

// SetLink cuts (up false) or restores the cable of node on one network.
func (b *Board) SetLink(node, network string, up bool) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.cut[node] == nil {
		b.cut[node] = map[string]bool{}
	}
	b.cut[node][network] = !up
	return b.setPort(node, network, up)
}

func (b *Board) setPort(node, network string, up bool) error {
	s := b.switches[network]
	link, err := s.handle.LinkByName(node)
	var absent netlink.LinkNotFoundError
	if errors.As(err, &absent) {
		return nil // no power: the port comes with the node
	}
	if err != nil {
		return err
	}
	if up {
		return s.handle.LinkSetUp(link)
	}
	return s.handle.LinkSetDown(link)
}

// Cut returns the networks on which node's cable is cut, sorted.
func (b *Board) Cut(node string) []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	var list []string
	for name, cut := range b.cut[node] {
		if cut {
			list = append(list, name)
		}
	}
	sort.Strings(list)
	return list
}

// Ports returns the interface index of each port of a switch.
func (b *Board) Ports(network string) map[string]int {
	b.mu.Lock()
	defer b.mu.Unlock()
	out := map[string]int{}
	if s := b.switches[network]; s != nil {
		for node, index := range s.ports {
			out[node] = index
		}
	}
	return out
}

// Namespace returns the namespace called "outside", or the switch called
// "cluster", "storage" or "vm". It stays the board's.
func (b *Board) Namespace(name string) (*os.File, error) {
	if name == "outside" {
		return b.outside, nil
	}
	if s := b.switches[name]; s != nil {
		return s.ns, nil
	}
	return nil, errs.New(errs.Invalid, "find namespace %q: want outside, cluster, storage or vm", name)
}

// Close ends all switches. Their cables and bridges go with them.
func (b *Board) Close() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	var err error
	for name, s := range b.switches {
		err = errors.Join(err, s.close())
		delete(b.switches, name)
	}
	if b.outside != nil {
		err = errors.Join(err, b.outside.Close())
		b.outside = nil
	}
	return err
}
