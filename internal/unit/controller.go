package unit

import (
	"context"
	"os"
	"time"

	"roseau/internal/base/paths"
)

// State is where a unit is in its life.
type State string

// The states of a unit.
const (
	Stopped    State = "stopped"    // not started, stopped, or ended cleanly
	Running    State = "running"    // the main process lives
	Restarting State = "restarting" // it ended and will be started again
	Stopping   State = "stopping"   // SIGTERM was sent
	Failed     State = "failed"     // it ended badly and will not be started again
)

// Status is what a supervisor knows of a unit.
type Status struct {
	Name     Name      `json:"name"`
	State    State     `json:"state"`
	PID      int       `json:"pid,omitempty"`      // of the main process; 0 unless it lives
	Ready    bool      `json:"ready,omitempty"`    // READY=1 was seen since the last start
	Restarts int       `json:"restarts,omitempty"` // since the last Start
	Since    time.Time `json:"since,omitzero"`     // of the last change of State, wall clock
	LastExit string    `json:"last_exit,omitempty"`
}

// Controller starts and stops units. All methods may be called by several
// goroutines at once.
type Controller interface {
	// Start starts the unit if it does not run. It returns when the supervisor
	// has taken the order, not when the process is ready.
	Start(ctx context.Context, name Name) error
	// Stop ends the unit and returns when its main process is gone. With
	// KillProcess its children live on. A unit that does not run is no error.
	Stop(ctx context.Context, name Name) error
	// Kill sends a signal to the main process; the restart policy applies.
	Kill(ctx context.Context, name Name, signal int) error
	// Status returns the state of one unit; one that was never started is Stopped.
	// NotFound if the supervisor has no such unit or template.
	Status(ctx context.Context, name Name) (Status, error)
	// List returns the units that the supervisor has seen, by name.
	List(ctx context.Context) ([]Status, error)
	// Close releases the connection; the units go on.
	Close() error
}

// Machine is implemented by supervisors that have the power of the machine.
type Machine interface {
	// Power ends every unit and switches the machine off, or boots it anew. It
	// returns when the order was taken.
	Power(ctx context.Context, reboot bool) error
}

// Detect returns the controller of this machine: the lab's init where its
// socket exists, else systemd.
func Detect(ctx context.Context) (Controller, error) {
	if _, err := os.Stat(paths.LabInitSocket); err == nil {
		return NewLabClient(paths.LabInitSocket), nil
	}
	return NewSystemd(ctx)
}
