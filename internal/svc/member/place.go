package member

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"roseau/internal/base/errs"
	"roseau/internal/core/watchdog"
	"roseau/internal/model"
	"roseau/internal/store"
)

// NodeChange is the body of PATCH /v1/nodes/{ref}: what is absent stays, an empty
// text takes the place away.
type NodeChange struct {
	Chassis *string `json:"chassis,omitempty" doc:"enclosure with common power or cooling"`
	Rack    *string `json:"rack,omitempty"`
	Site    *string `json:"site,omitempty"`
	// Watchdog is on, off, or a timeout for on.
	Watchdog *string `json:"watchdog,omitempty" doc:"feed the machine's hardware watchdog: on (60 s), off, or its timeout, 10s to 10m"`
	// AddLabels and RemoveLabels change what rules select nodes by.
	AddLabels    []string `json:"add_labels,omitempty"`
	RemoveLabels []string `json:"remove_labels,omitempty"`
}

// watchdogOf reads NodeChange.Watchdog.
func watchdogOf(s string) (time.Duration, error) {
	switch s {
	case "on":
		return watchdog.DefaultTimeout, nil
	case "off", "":
		return 0, nil
	}
	d, err := time.ParseDuration(s)
	if err != nil || d < watchdog.MinTimeout || d > watchdog.MaxTimeout || d%time.Second != 0 {
		return 0, errs.New(errs.Invalid, "watchdog is %q, want on, off or a timeout in whole seconds, %s to %s", s, watchdog.MinTimeout, watchdog.MaxTimeout)
	}
	return d, nil
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
	var feed time.Duration
	if c.Watchdog != nil {
		if feed, err = watchdogOf(*c.Watchdog); err != nil {
			return nil, fmt.Errorf("node %s: %w", n.Name, err)
		}
	}
	for _, l := range c.AddLabels {
		if err := model.CheckLabel("node "+n.Name, l); err != nil {
			return nil, err
		}
	}
	n, err = store.Update(ctx, m.Store, n.ID, func(n *model.Node) error {
		if c.Watchdog != nil {
			n.Spec.Watchdog = feed
		}
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
