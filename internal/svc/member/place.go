package member

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"roseau/internal/base/errs"
	"roseau/internal/model"
	"roseau/internal/store"
)

// NodeChange is the body of PATCH /v1/nodes/{ref}: what is absent stays, an empty
// text takes the place away.
type NodeChange struct {
	Chassis *string `json:"chassis,omitempty" doc:"enclosure with common power or cooling"`
	Rack    *string `json:"rack,omitempty"`
	Site    *string `json:"site,omitempty"`
	// AddLabels and RemoveLabels change what rules select nodes by.
	AddLabels    []string `json:"add_labels,omitempty"`
	RemoveLabels []string `json:"remove_labels,omitempty"`
}

// maxPlace bounds the name of a place.
const maxPlace = 63

// SetNode says where a node stands. Pools whose failure domain is a chassis, a
// rack or a site place new copies by it; copies that are there stay where they
// are.
func (m *Server) SetNode(ctx context.Context, ref string, c NodeChange) (*model.Node, error) {
	n, err := store.Get[model.Node](ctx, m.Store, ref)
	if err != nil {
		return nil, err
	}
	for _, f := range []struct {
		name string
		v    *string
	}{{"chassis", c.Chassis}, {"rack", c.Rack}, {"site", c.Site}} {
		if f.v != nil && (len(*f.v) > maxPlace || strings.ContainsAny(*f.v, "/\n\t") || strings.TrimSpace(*f.v) != *f.v) {
			return nil, errs.New(errs.Invalid, "node %s: %s is %q, want at most %d characters without slash and outer spaces", n.Name, f.name, *f.v, maxPlace)
		}
	}
	for _, l := range c.AddLabels {
		if err := model.CheckLabel("node "+n.Name, l); err != nil {
			return nil, err
		}
	}
	n, err = store.Update(ctx, m.Store, n.ID, func(n *model.Node) error {
		if err := setLabels(n, c); err != nil {
			return err
		}
		for _, f := range []struct{ to, from *string }{{&n.Spec.Chassis, c.Chassis}, {&n.Spec.Rack, c.Rack}, {&n.Spec.Site, c.Site}} {
			if f.from != nil {
				*f.to = *f.from
			}
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("set node %s: %w", ref, err)
	}
	n.Status.Ready = m.Sessions.Alive(n.ID)
	return n, nil
}

// setLabels takes labels away and adds others; what is not there to take away is
// refused, for it is a typing error.
func setLabels(n *model.Node, c NodeChange) error {
	for _, l := range c.RemoveLabels {
		i := slices.Index(n.Spec.Labels, l)
		if i < 0 {
			return errs.New(errs.NotFound, "node %s: has no label %s", n.Name, l).WithHint("it has: %s", strings.Join(n.Spec.Labels, ", "))
		}
		n.Spec.Labels = slices.Delete(n.Spec.Labels, i, i+1)
	}
	for _, l := range c.AddLabels {
		if !slices.Contains(n.Spec.Labels, l) {
			n.Spec.Labels = append(n.Spec.Labels, l)
		}
	}
	if len(n.Spec.Labels) > model.MaxLabels {
		return errs.New(errs.Invalid, "node %s: %d labels, want at most %d", n.Name, len(n.Spec.Labels), model.MaxLabels)
	}
	slices.Sort(n.Spec.Labels)
	return nil
}
