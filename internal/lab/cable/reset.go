package cable

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// resetTable is a table of its own, for tableName may hold what silences a port.
const resetTable = "lab-reset"

// resetWait bounds the wait for connections that carry something; the rest may be
// half of ones that were reset at their other end.
const resetWait = 2 * time.Second

// ResetConnections resets the TCP connections of a node's namespace whose one end
// has the given port, as a router that has lost its state does: each ends at the next
// packet that it carries. It returns when none of those that stood before is left, or
// after 2 s. Those that are made meanwhile may be reset, too.
func ResetConnections(ctx context.Context, ns *os.File, port uint16) error {
	before, err := established(ns, port)
	if err != nil || len(before) == 0 {
		return err
	}
	conn, err := nftables.New(nftables.WithNetNSFd(int(ns.Fd())))
	if err != nil {
		return err
	}
	table := emptyTable(conn, nftables.TableFamilyINet, resetTable)
	for name, hook := range map[string]*nftables.ChainHook{"in": nftables.ChainHookInput, "out": nftables.ChainHookOutput} {
		policy := nftables.ChainPolicyAccept
		chain := conn.AddChain(&nftables.Chain{Name: name, Table: table, Type: nftables.ChainTypeFilter,
			Hooknum: hook, Priority: nftables.ChainPriorityFilter, Policy: &policy})
		for _, offset := range []uint32{0, 2} { // of source and destination port
			conn.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: resetRule(offset, port)})
		}
	}
	if err := conn.Flush(); err != nil {
		return err
	}
	err = gone(ctx, ns, port, before)
	conn.DelTable(table)
	if e := conn.Flush(); err == nil {
		err = e
	}
	return err
}

// gone waits until none of the connections is left, at most for resetWait.
func gone(ctx context.Context, ns *os.File, port uint16, left []string) error {
	tick, limit := time.NewTicker(20*time.Millisecond), time.After(resetWait)
	defer tick.Stop()
	for len(left) > 0 {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-limit:
			return nil
		case <-tick.C:
		}
		now, err := established(ns, port)
		if err != nil {
			return err
		}
		left = slices.DeleteFunc(left, func(c string) bool { return !slices.Contains(now, c) })
	}
	return nil
}

// resetRule answers segments by a reset, but for resets and for those that ask for a
// connection: one that is refused tells that the process is gone.
func resetRule(offset uint32, port uint16) []expr.Any {
	const tcpFlags, tcpSYN, tcpRST = 13, 2, 4
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{unix.IPPROTO_TCP}},
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: offset, Len: 2},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binaryutil.BigEndian.PutUint16(port)},
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: tcpFlags, Len: 1},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 1, Mask: []byte{tcpSYN | tcpRST}, Xor: []byte{0}},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{0}},
		&expr.Reject{Type: unix.NFT_REJECT_TCP_RST},
	}
}

// established lists the established connections of a port, each by its ends as the
// kernel writes them.
func established(ns *os.File, port uint16) (list []string, err error) {
	suffix := fmt.Sprintf(":%04X", port)
	err = Within(ns, func() error {
		for _, file := range []string{"tcp", "tcp6"} {
			b, err := os.ReadFile("/proc/thread-self/net/" + file)
			if os.IsNotExist(err) && file == "tcp6" {
				continue
			}
			if err != nil {
				return err
			}
			for line := range strings.Lines(string(b)) {
				f := strings.Fields(line) // slot, local, remote, state
				if len(f) > 3 && f[3] == "01" && (strings.HasSuffix(f[1], suffix) || strings.HasSuffix(f[2], suffix)) {
					list = append(list, f[1]+"-"+f[2])
				}
			}
		}
		return nil
	})
	return list, err
}
