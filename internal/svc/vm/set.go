package vm

import (
	"context"
	"fmt"
	"slices"

	"roseau/internal/base/errs"
	core "roseau/internal/core/ha"
	"roseau/internal/model"
	"roseau/internal/store"
)

// orderKey changes with every change of who waits for whom, so that two changes
// that make a circle together cannot both be made.
const orderKey = "/c/start-order"

// Set changes the spec. What a VM waits for must exist, and not wait for it.
func (s *Service) Set(ctx context.Context, ref string, req SetRequest) (vm *model.VM, err error) {
	rev, err := s.env.Store.Transact(ctx, "set vm "+ref, func(tx *store.Tx) error {
		order, err := store.GetRecord[string](ctx, s.env.Store, orderKey)
		if err != nil {
			return err
		}
		if vm, err = store.Get[model.VM](ctx, s.env.Store, ref); err != nil {
			return err
		}
		req.apply(&vm.Spec)
		if err := vm.Validate(); err != nil {
			return err
		}
		if req.After != nil {
			if err := s.checkAfter(ctx, vm); err != nil {
				return err
			}
			tx.If(orderKey, order.Revision).Put(orderKey, vm.Name)
		}
		return store.TxPut(tx, vm)
	})
	if err != nil {
		return nil, err
	}
	vm.Revision = rev
	return vm, nil
}

// apply changes what the request names.
func (req *SetRequest) apply(sp *model.VMSpec) {
	if req.CPUs != nil {
		sp.CPUs = *req.CPUs
	}
	if req.Memory != nil {
		sp.Memory = *req.Memory
	}
	if req.HA != nil {
		sp.HA = *req.HA
	}
	if req.Priority != nil {
		sp.Priority = *req.Priority
	}
	if req.After != nil {
		sp.After = slices.Compact(slices.Sorted(slices.Values(*req.After)))
		if len(sp.After) == 0 && req.StartDelay == nil {
			sp.After, sp.StartDelay = nil, 0
		}
	}
	if req.StartDelay != nil {
		sp.StartDelay = *req.StartDelay
	}
	if req.MaxRestarts != nil {
		sp.MaxRestarts = *req.MaxRestarts
	}
}

// checkAfter refuses VMs that do not exist and circles.
func (s *Service) checkAfter(ctx context.Context, vm *model.VM) error {
	all, err := store.List[model.VM](ctx, s.env.Store)
	if err != nil {
		return err
	}
	after, exists := map[string][]string{vm.Name: vm.Spec.After}, map[string]bool{}
	for _, o := range all {
		exists[o.Name] = true
		if o.ID != vm.ID {
			after[o.Name] = o.Spec.After
		}
	}
	for _, name := range vm.Spec.After {
		if !exists[name] {
			return errs.New(errs.NotFound, "set vm %s: after names vm %s, which does not exist", vm.Name, name).WithHint("`roseau vm list` shows what there is")
		}
	}
	if err := core.CheckAfter(after); err != nil {
		return fmt.Errorf("set vm %s: %w", vm.Name, err)
	}
	return nil
}
