package cable

import (
	"fmt"
	"os"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"roseau/internal/base/errs"
)

// tableName is the lab's table, in the switches and in the nodes.
const tableName = "lab"

// Partition lets no frame pass between nodes of different groups, on the
// networks given. Nodes in no group, and the outside host, reach everybody. It
// replaces the partition before; nil groups heal.
func (b *Board) Partition(groups [][]string, networks []Network) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	seen := map[string]bool{}
	for _, g := range groups {
		for _, node := range g {
			if seen[node] {
				return errs.New(errs.Invalid, "partition: node %s is named twice", node)
			}
			seen[node] = true
		}
	}
	for _, w := range Networks {
		var pairs [][2]string
		if slices.ContainsFunc(networks, func(x Network) bool { return x.Name == w.Name }) {
			pairs = apart(groups)
		}
		if err := b.switches[w.Name].block(pairs); err != nil {
			return fmt.Errorf("partition switch %s: %w", w.Name, err)
		}
	}
	b.groups = groups
	return nil
}

// Groups returns the partition in force, nil if none.
func (b *Board) Groups() [][]string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.groups
}

// apart lists the ordered pairs of nodes that stand in different groups.
func apart(groups [][]string) (pairs [][2]string) {
	for i, g := range groups {
		for j, h := range groups {
			if i == j {
				continue
			}
			for _, from := range g {
				for _, to := range h {
					pairs = append(pairs, [2]string{from, to})
				}
			}
		}
	}
	return pairs
}

// block replaces the pairs between which the switch forwards nothing.
func (s *swtch) block(pairs [][2]string) error {
	conn, err := nftables.New(nftables.WithNetNSFd(int(s.ns.Fd())))
	if err != nil {
		return err
	}
	table := replaceTable(conn, nftables.TableFamilyBridge)
	chain := conn.AddChain(&nftables.Chain{
		Name: "forward", Table: table, Type: nftables.ChainTypeFilter,
		Hooknum: nftables.ChainHookForward, Priority: nftables.ChainPriorityFilter,
	})
	for _, p := range pairs {
		conn.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: []expr.Any{
			&expr.Meta{Key: expr.MetaKeyIIFNAME, Register: 1},
			&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: ifname(p[0])},
			&expr.Meta{Key: expr.MetaKeyOIFNAME, Register: 1},
			&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: ifname(p[1])},
			&expr.Verdict{Kind: expr.VerdictDrop},
		}})
	}
	return conn.Flush()
}

// replaceTable begins a transaction with an empty table of the lab.
func replaceTable(conn *nftables.Conn, family nftables.TableFamily) *nftables.Table {
	return emptyTable(conn, family, tableName)
}

// emptyTable begins a transaction with an empty table of a name.
func emptyTable(conn *nftables.Conn, family nftables.TableFamily, name string) *nftables.Table {
	table := &nftables.Table{Family: family, Name: name}
	conn.AddTable(table) // so that the deletion finds one
	conn.DelTable(table)
	return conn.AddTable(table)
}

func ifname(s string) []byte {
	b := make([]byte, unix.IFNAMSIZ)
	copy(b, s)
	return b
}

// SilencePorts makes TCP servers of a node's namespace on the given ports
// unreachable, from the node itself as well, and stops the clients inside from
// reaching peerPort of others: connections are reset, as if the server process
// had ended. No ports: it is undone.
func SilencePorts(ns *os.File, ports []uint16, peerPort uint16) error {
	conn, err := nftables.New(nftables.WithNetNSFd(int(ns.Fd())))
	if err != nil {
		return err
	}
	table := replaceTable(conn, nftables.TableFamilyINet)
	if len(ports) == 0 {
		conn.DelTable(table)
		return conn.Flush()
	}
	policy := nftables.ChainPolicyAccept
	in := conn.AddChain(&nftables.Chain{Name: "in", Table: table, Type: nftables.ChainTypeFilter,
		Hooknum: nftables.ChainHookInput, Priority: nftables.ChainPriorityFilter, Policy: &policy})
	out := conn.AddChain(&nftables.Chain{Name: "out", Table: table, Type: nftables.ChainTypeFilter,
		Hooknum: nftables.ChainHookOutput, Priority: nftables.ChainPriorityFilter, Policy: &policy})
	const sourcePort, destinationPort, tcpFlags = 0, 2, 13 // offsets in the TCP header
	const tcpRST = 4
	rule := func(chain *nftables.Chain, offset uint32, port uint16, verdict expr.Any) {
		conn.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: []expr.Any{
			&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1},
			&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{unix.IPPROTO_TCP}},
			&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: offset, Len: 2},
			&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binaryutil.BigEndian.PutUint16(port)},
			// The resets that these rules make pass the other hook and must get through.
			&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: tcpFlags, Len: 1},
			&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 1, Mask: []byte{tcpRST}, Xor: []byte{0}},
			&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{0}},
			verdict,
		}})
	}
	reset := &expr.Reject{Type: unix.NFT_REJECT_TCP_RST}
	drop := &expr.Verdict{Kind: expr.VerdictDrop}
	for _, p := range ports {
		rule(in, destinationPort, p, reset)
		rule(out, sourcePort, p, drop)
	}
	rule(out, destinationPort, peerPort, reset)
	rule(in, sourcePort, peerPort, drop)
	return conn.Flush()
}
