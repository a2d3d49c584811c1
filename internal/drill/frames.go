package drill

import (
	"context"
	"fmt"
	"net"
	"sync"
	"time"

	"roseau/internal/model"
)

// frameWatch hears by which nodes' cables frames of a VM come.
type frameWatch struct {
	cancel context.CancelFunc
	done   chan struct{}

	mu    sync.Mutex // protects the fields below
	heard map[string][]time.Time
	err   error
}

// watchFrames begins to listen, and returns once the VM was heard.
func watchFrames(ctx context.Context, e *Env, vm model.VM) (*frameWatch, error) {
	mac, err := net.ParseMAC(vm.Spec.NICs[0].MAC)
	if err != nil {
		return nil, err
	}
	fctx, cancel := context.WithCancel(ctx)
	w := &frameWatch{cancel: cancel, done: make(chan struct{}), heard: map[string][]time.Time{}}
	go func() {
		defer close(w.done)
		err := e.Frames.Frames(fctx, mac, func(node string, at time.Time) {
			w.mu.Lock()
			defer w.mu.Unlock()
			w.heard[node] = append(w.heard[node], at)
		})
		w.mu.Lock()
		defer w.mu.Unlock()
		w.err = err
	}()
	err = waitUntil(ctx, 20*time.Second, 20*time.Millisecond, "frames of "+vm.Name+" from "+vm.Status.Node, func() (bool, error) {
		w.mu.Lock()
		defer w.mu.Unlock()
		return len(w.heard[vm.Status.Node]) > 0, w.err
	})
	if err != nil {
		w.stop()
		return nil, err
	}
	return w, nil
}

func (w *frameWatch) stop() {
	w.cancel()
	<-w.done
}

// from ends the watch and returns how many frames came from a node after a
// moment, and when the last one at all did.
func (w *frameWatch) from(node string, after time.Time) (late int, last time.Time, err error) {
	w.stop()
	for _, at := range w.heard[node] {
		if at.After(after) {
			late++
		}
		last = at
	}
	if w.err != nil {
		return 0, last, fmt.Errorf("record frames: %w", w.err)
	}
	return late, last, nil
}
