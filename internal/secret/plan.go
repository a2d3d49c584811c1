package secret

import (
	"crypto/ecdh"
	"fmt"
	"slices"
	"time"

	"roseau/internal/base/ids"
)

// Member is a node of the cluster, as far as secrets are concerned.
type Member struct {
	ID      ids.ID
	Name    string
	Leaving bool            // it is being removed
	Key     *ecdh.PublicKey // nil: it has published no valid certificate yet
}

// Step is what a box needs. The zero value: nothing.
type Step struct {
	Add  []Reader // nodes that cannot read it yet
	Gone []ids.ID // nodes that can read it and are not, or not for long, of the cluster: seal anew
}

// Nothing reports whether the box is as it should be.
func (s Step) Nothing() bool { return len(s.Add) == 0 && len(s.Gone) == 0 }

// Plan compares a box with the nodes of the cluster. An empty list of nodes
// proves nothing and changes nothing.
func Plan(b *Box, members []Member) (s Step) {
	if len(members) == 0 {
		return s
	}
	for _, m := range members {
		if m.Leaving || m.Key == nil {
			continue
		}
		ok := slices.ContainsFunc(b.Wraps, func(w Wrap) bool { return w.Node == m.ID && w.KeyHash == KeyHash(m.Key) })
		if !ok {
			s.Add = append(s.Add, Reader{m.ID, m.Key})
		}
	}
	for _, w := range b.Wraps {
		if !slices.ContainsFunc(members, func(m Member) bool { return m.ID == w.Node && !m.Leaving }) {
			s.Gone = append(s.Gone, w.Node)
		}
	}
	return s
}

// Readers returns the nodes that can be sealed for.
func Readers(members []Member) (out []Reader) {
	for _, m := range members {
		if !m.Leaving && m.Key != nil {
			out = append(out, Reader{m.ID, m.Key})
		}
	}
	return out
}

// Apply carries out a step: the box as it is to be. node and key are of a node
// that can open it; names tells the names of nodes that are gone.
func (b *Box) Apply(s Step, members []Member, node ids.ID, key *ecdh.PrivateKey, names map[ids.ID]string, now time.Time) (*Box, error) {
	if len(s.Gone) == 0 {
		return b.wrapFor(node, key, s.Add)
	}
	content, err := b.Open(node, key)
	if err != nil {
		return nil, err
	}
	// Who can read it and stays is sealed for under the key that it has shown; one
	// whose certificate is not to be had now is added when it is.
	c, err := Seal(b.Cluster, b.ID, content, Readers(members), now)
	if err != nil {
		return nil, err
	}
	c.Set, c.Exposed = b.Set, slices.Clone(b.Exposed)
	for _, g := range s.Gone {
		name := names[g]
		if name == "" {
			name = g.String()
		}
		if !slices.Contains(c.Exposed, name) {
			c.Exposed = append(c.Exposed, name)
		}
	}
	if !slices.ContainsFunc(c.Wraps, func(w Wrap) bool { return w.Node == node }) {
		return nil, fmt.Errorf("seal secret %s anew: node %s, which does it, could not read it", b.ID, node)
	}
	return c, nil
}
