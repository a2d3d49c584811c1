// Package rule keeps the rules of placement: which machines stay together or apart,
// and on which nodes. It refuses what contradicts; core/place carries rules out.
package rule

import (
	"context"
	"fmt"
	"slices"

	"github.com/danielgtaylor/huma/v2"

	"roseau/internal/api"
	"roseau/internal/base/errs"
	core "roseau/internal/core/ha"
	"roseau/internal/core/place"
	"roseau/internal/model"
	"roseau/internal/store"
	"roseau/internal/svc"
	"roseau/internal/svc/ha"
)

// setKey changes with every rule that is added, so that two that contradict each
// other cannot be added in the same moment.
const setKey = "/c/rules"

// Service has the operations on rules.
type Service struct {
	env    *svc.Env
	viewer *ha.Viewer
}

// New returns the service.
func New(env *svc.Env, v *ha.Viewer) *Service { return &Service{env: env, viewer: v} }

// AddRequest is the body of POST /v1/rules.
type AddRequest struct {
	Name   string         `json:"name"`
	Kind   model.RuleKind `json:"kind" doc:"together, apart, on or not-on"`
	Soft   bool           `json:"soft,omitempty" doc:"a wish: given up when no node fulfils it"`
	VMs    []string       `json:"vms"`
	Nodes  []string       `json:"nodes,omitempty" doc:"of on and not-on"`
	Labels []string       `json:"labels,omitempty" doc:"of on and not-on: nodes with any of them; rack=R1, site= and chassis= are there by themselves"`
}

// Info is a rule and whether it holds.
type Info struct {
	model.Rule
	// Broken says why it does not hold where its machines are now; empty: it does.
	Broken string `json:"broken,omitempty"`
}

// Routes adds the operations.
func (s *Service) Routes(r *api.Router) {
	huma.Register(r, api.Op("list-rules", "GET", "/v1/rules", "List rules of placement"), func(ctx context.Context, _ *struct{}) (*api.Body[[]Info], error) {
		return api.OK(s.List(ctx))
	})
	huma.Register(r, api.Op("add-rule", "POST", "/v1/rules", "Add a rule of placement"), func(ctx context.Context, in *struct{ Body AddRequest }) (*api.Body[*model.Rule], error) {
		return api.OK(s.Add(ctx, in.Body))
	})
	huma.Register(r, api.Op("remove-rule", "DELETE", "/v1/rules/{ref}", "Remove a rule of placement"), func(ctx context.Context, in *api.Ref) (*struct{}, error) {
		return nil, s.Remove(ctx, in.Ref)
	})
}

// List returns all rules, by name.
func (s *Service) List(ctx context.Context) ([]Info, error) {
	rules, err := store.List[model.Rule](ctx, s.env.Store.Relaxed())
	if err != nil {
		return nil, err
	}
	now := s.env.Clock.Now()
	view := s.viewer.View(now)
	out := make([]Info, 0, len(rules))
	for _, r := range rules {
		i := Info{Rule: *r}
		if v := core.Violations(view, []place.VMRule{ha.RuleOf(r)}, now); len(v) > 0 {
			i.Broken = v[0].Why
		}
		out = append(out, i)
	}
	return out, nil
}

// Add stores a rule that names what there is and contradicts no other. Nothing
// moves because of it: that is the balancer's affair.
func (s *Service) Add(ctx context.Context, req AddRequest) (*model.Rule, error) {
	r := &model.Rule{Meta: model.Meta{Name: req.Name}, Spec: model.RuleSpec{Kind: req.Kind, Soft: req.Soft, VMs: req.VMs, Nodes: req.Nodes, Labels: req.Labels}}
	if err := r.Validate(); err != nil {
		return nil, err
	}
	_, err := s.env.Store.Transact(ctx, "add rule "+r.Name, func(tx *store.Tx) error { return s.add(ctx, tx, r) })
	if err != nil {
		return nil, err
	}
	s.env.Events.Emit("info", "rule "+r.Name, "added: "+Text(r))
	return r, nil
}

// add adds r to tx, if it contradicts no other rule; every addition is conditioned on
// the one before.
func (s *Service) add(ctx context.Context, tx *store.Tx, r *model.Rule) error {
	set, err := store.GetRecord[string](ctx, s.env.Store, setKey)
	if err != nil {
		return err
	}
	if err := s.checkNames(ctx, r); err != nil {
		return err
	}
	all, err := store.List[model.Rule](ctx, s.env.Store)
	if err != nil {
		return err
	}
	nodes, err := store.List[model.Node](ctx, s.env.Store)
	if err != nil {
		return err
	}
	var rules []place.VMRule
	for _, o := range all {
		if o.Name == r.Name {
			return errs.New(errs.Conflict, "add rule %s: the name is taken", r.Name).WithHint("`roseau rule list`; remove it first to change it")
		}
		rules = append(rules, ha.RuleOf(o))
	}
	if err := place.CheckRules(append(rules, ha.RuleOf(r)), placeNodes(nodes)); err != nil {
		return fmt.Errorf("add rule %s: %w", r.Name, err)
	}
	tx.If(setKey, set.Revision).Put(setKey, r.Name)
	return store.TxCreate(tx, s.env.Store, r)
}

// checkNames refuses machines, nodes and labels that there are not.
func (s *Service) checkNames(ctx context.Context, r *model.Rule) error {
	for _, name := range r.Spec.VMs {
		if _, err := store.Get[model.VM](ctx, s.env.Store, name); err != nil {
			return fmt.Errorf("add rule %s: %w", r.Name, err)
		}
	}
	for _, name := range r.Spec.Nodes {
		if _, err := store.Get[model.Node](ctx, s.env.Store, name); err != nil {
			return fmt.Errorf("add rule %s: %w", r.Name, err)
		}
	}
	if len(r.Spec.Labels) == 0 {
		return nil
	}
	nodes, err := store.List[model.Node](ctx, s.env.Store)
	if err != nil {
		return err
	}
	for _, label := range r.Spec.Labels {
		if !slices.ContainsFunc(nodes, func(n *model.Node) bool { return slices.Contains(n.AllLabels(), label) }) {
			return errs.New(errs.NotFound, "add rule %s: no node has the label %s", r.Name, label).WithHint("`roseau node set NODE --label %s`", label)
		}
	}
	return nil
}

func placeNodes(nodes []*model.Node) []place.Node {
	out := make([]place.Node, 0, len(nodes))
	for _, n := range nodes {
		out = append(out, place.Node{ID: n.ID, Name: n.Name, Labels: n.AllLabels()})
	}
	return out
}

// Remove deletes a rule.
func (s *Service) Remove(ctx context.Context, ref string) error {
	r, err := store.Get[model.Rule](ctx, s.env.Store, ref)
	if err != nil {
		return err
	}
	return store.Delete(ctx, s.env.Store, r)
}

// Text is a rule in one line.
func Text(r *model.Rule) string {
	s := &r.Spec
	text := fmt.Sprintf("%s %v", s.Kind, s.VMs)
	if len(s.Nodes)+len(s.Labels) > 0 {
		text += fmt.Sprintf(": %v", append(slices.Clone(s.Nodes), s.Labels...))
	}
	if s.Soft {
		text += ", soft"
	}
	return text
}
