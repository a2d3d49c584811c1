package bridge

import (
	"encoding/binary"
	"fmt"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// apply replaces the plan's table in one transaction. The set starts empty: all
// ports are silent.
func (p Plan) apply() error {
	c, err := nftables.New()
	if err != nil {
		return fmt.Errorf("apply table %s: %w", p.Table, err)
	}
	t := &nftables.Table{Family: nftables.TableFamilyBridge, Name: p.Table}
	c.AddTable(t) // so that the deletion finds one
	c.DelTable(t)
	c.AddTable(t)
	set := &nftables.Set{Table: t, Name: aliveSet, KeyType: nftables.TypeIFName, HasTimeout: true}
	if err := c.AddSet(set, nil); err != nil {
		return fmt.Errorf("apply table %s: %w", p.Table, err)
	}
	policy := nftables.ChainPolicyAccept
	chain := c.AddChain(&nftables.Chain{Table: t, Name: portChain, Type: nftables.ChainTypeFilter,
		Hooknum: nftables.ChainHookPrerouting, Priority: nftables.ChainPriorityRaw, Policy: &policy})
	for _, r := range p.Rules {
		c.AddRule(&nftables.Rule{Table: t, Chain: chain, Exprs: r.exprs(set)})
	}
	if err := c.Flush(); err != nil {
		return fmt.Errorf("apply table %s: %w", p.Table, err)
	}
	return nil
}

// exprs is the rule in the kernel's machine.
func (r Rule) exprs(alive *nftables.Set) []expr.Any {
	e := []expr.Any{
		&expr.Meta{Key: expr.MetaKeyIIFNAME, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: ifname(r.Tap)},
	}
	switch r.Test {
	case NotAlive:
		e = append(e,
			&expr.Meta{Key: expr.MetaKeyIIFNAME, Register: 1},
			&expr.Lookup{SourceRegister: 1, SetName: alive.Name, SetID: alive.ID, Invert: true})
	case ForeignMAC:
		e = append(e,
			&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseLLHeader, Offset: 6, Len: 6},
			&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: r.MAC})
	case ForeignARPHW:
		e = append(e,
			&expr.Meta{Key: expr.MetaKeyPROTOCOL, Register: 1},
			&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binary.BigEndian.AppendUint16(nil, unix.ETH_P_ARP)},
			&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: 8, Len: 6},
			&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: r.MAC})
	}
	return append(e, &expr.Verdict{Kind: expr.VerdictDrop})
}

// refresh lets the taps speak for d from now on; d <= 0 silences them at once.
// Delete and add in one transaction: the add alone would leave an old timeout.
func refresh(table string, taps []string, d time.Duration) error {
	if len(taps) == 0 {
		return nil
	}
	c, err := nftables.New()
	if err != nil {
		return fmt.Errorf("refresh ports of %s: %w", table, err)
	}
	t := &nftables.Table{Family: nftables.TableFamilyBridge, Name: table}
	set := &nftables.Set{Table: t, Name: aliveSet, KeyType: nftables.TypeIFName, HasTimeout: true}
	elements := make([]nftables.SetElement, len(taps))
	for i, tap := range taps {
		elements[i] = nftables.SetElement{Key: ifname(tap), Timeout: max(d.Truncate(time.Millisecond), 100*time.Millisecond)}
	}
	add := func() {
		if err == nil {
			err = c.SetAddElements(set, elements)
		}
	}
	add() // so that the deletion finds them
	if err == nil {
		err = c.SetDeleteElements(set, elements)
	}
	if d.Truncate(time.Millisecond) > 0 {
		for i := range elements {
			elements[i].Timeout = d.Truncate(time.Millisecond)
		}
		add()
	}
	if err == nil {
		err = c.Flush()
	}
	if err != nil {
		return fmt.Errorf("refresh ports of %s: %w", table, err)
	}
	return nil
}

// deleteTable removes a table that may be absent.
func deleteTable(table string) error {
	c, err := nftables.New()
	if err != nil {
		return fmt.Errorf("delete table %s: %w", table, err)
	}
	t := &nftables.Table{Family: nftables.TableFamilyBridge, Name: table}
	c.AddTable(t)
	c.DelTable(t)
	if err := c.Flush(); err != nil {
		return fmt.Errorf("delete table %s: %w", table, err)
	}
	return nil
}

func ifname(s string) []byte {
	b := make([]byte, unix.IFNAMSIZ)
	copy(b, s)
	return b
}
