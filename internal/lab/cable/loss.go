package cable

import (
	"errors"
	"fmt"
	"maps"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"roseau/internal/base/errs"
)

// lossTable is a table of its own, for tableName may hold a partition.
const lossTable = "lab-loss"

// Lose lets a node's cables on the networks given lose percent of their frames, at
// random, in both directions, beyond the node's power; 0 ends it. What a switch itself
// says (a management controller) is not lost.
func (b *Board) Lose(node string, networks []Network, percent int) error {
	if percent < 0 || percent > 100 {
		return errs.New(errs.Invalid, "lose frames of node %s: %d percent is not between 0 and 100", node, percent)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	var err error
	for _, w := range networks {
		s := b.switches[w.Name]
		if s.loss[node] == percent {
			continue
		}
		loss := maps.Clone(s.loss)
		loss[node] = percent
		if percent == 0 {
			delete(loss, node)
		}
		if e := s.lose(loss); e != nil {
			err = errors.Join(err, fmt.Errorf("lose frames of node %s on switch %s: %w", node, w.Name, e))
			continue
		}
		s.loss = loss
	}
	return err
}

// Losses returns the percentage of frames that node's cables lose, by network; those
// that lose none are left out.
func (b *Board) Losses(node string) map[string]int {
	b.mu.Lock()
	defer b.mu.Unlock()
	var out map[string]int
	for name, s := range b.switches {
		if p := s.loss[node]; p > 0 {
			if out == nil {
				out = map[string]int{}
			}
			out[name] = p
		}
	}
	return out
}

// lose replaces what the switch drops at random.
func (s *swtch) lose(loss map[string]int) error {
	conn, err := nftables.New(nftables.WithNetNSFd(int(s.ns.Fd())))
	if err != nil {
		return err
	}
	table := emptyTable(conn, nftables.TableFamilyBridge, lossTable)
	if len(loss) == 0 {
		conn.DelTable(table)
		return conn.Flush()
	}
	chain := conn.AddChain(&nftables.Chain{
		Name: "forward", Table: table, Type: nftables.ChainTypeFilter,
		Hooknum: nftables.ChainHookForward, Priority: nftables.ChainPriorityFilter,
	})
	for node, percent := range loss {
		for _, direction := range []expr.MetaKey{expr.MetaKeyIIFNAME, expr.MetaKeyOIFNAME} {
			conn.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: []expr.Any{
				&expr.Meta{Key: direction, Register: 1},
				&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: ifname(node)},
				&expr.Numgen{Register: 1, Modulus: 100, Type: unix.NFT_NG_RANDOM},
				// Numbers are compared byte by byte.
				&expr.Byteorder{SourceRegister: 1, DestRegister: 1, Op: expr.ByteorderHton, Len: 4, Size: 4},
				&expr.Cmp{Op: expr.CmpOpLt, Register: 1, Data: []byte{0, 0, 0, byte(percent)}},
				&expr.Verdict{Kind: expr.VerdictDrop},
			}})
		}
	}
	return conn.Flush()
}
