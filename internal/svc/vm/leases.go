package vm

import (
	"context"

	"roseau/internal/driver/guardctl"
)

// Leases counts guards for the watchdog.
type Leases struct{ Guards }

// Leases counts the guards of this node that run a machine, and those of them
// that hold their leases. One that does not answer counts as both; one that is
// only preparing, or has ended, as neither.
func (l Leases) Leases(ctx context.Context) (guards, holding int, err error) {
	vms, err := l.Here(ctx)
	if err != nil {
		return 0, 0, err
	}
	for _, id := range vms {
		st, err := l.Control(id).Status(ctx)
		switch {
		case err != nil:
			guards, holding = guards+1, holding+1
		case st.Phase != guardctl.PhaseRunning && st.Phase != guardctl.PhaseStopping:
		case st.LeaseLeft > 0:
			guards, holding = guards+1, holding+1
		default:
			guards++
		}
	}
	return guards, holding, nil
}
