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

	"roseau/internal/base/errs"
)

// resetTable is a table of its own, for tableName may hold what silences a port.
const resetTable = "lab-reset"

// ResetConnections resets the TCP connections of a node's namespace whose one end
// has the given port, as a router that has lost its state does. It returns when
// none of those that stood before is left: each ends at the next packet that it
// carries, and ctx bounds the wait. Those that are made meanwhile may be reset, too.
func ResetConnections(ctx context.Context, ns *os.File, port uint16) error {
	before, err := established(ns, port)
	if err != nil || len(before) == 0 {
		return err
	}
	conn, err := nftables.New(nftables.WithNetNSFd(int(ns.Fd())))
	if err != nil {
		return err
	}
	table := &nftables.Table{Family: nftables.TableFamilyINet, Name: resetTable}
	conn.AddTable(table) // so that the deletion finds one
	conn.DelTable(table)
	conn.AddTable(table)
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
	left, err := before, error(nil)
	for tick := time.NewTicker(20 * time.Millisecond); len(left) > 0 && err == nil; {
		select {
		case <-ctx.Done():
			err = errs.New(errs.Unavailable, "reset connections of port %d: %s carry nothing: %w", port, strings.Join(left, ", "), context.Cause(ctx))
			tick.Stop()
		case <-tick.C:
			var now []string
			now, err = established(ns, port)
			left = slices.DeleteFunc(left, func(c string) bool { return !slices.Contains(now, c) })
		}
	}
	conn.DelTable(table)
	if e := conn.Flush(); err == nil {
		err = e
	}
	return err
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
