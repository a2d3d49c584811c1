package node

import (
	"context"
	"fmt"
	"log/slog"
	"runtime/debug"
	"time"
)

// Pauses before a service that ended is started again: doubled each time, reset
// after a long run.
const (
	restartMin   = 500 * time.Millisecond
	restartMax   = 30 * time.Second
	restartReset = 60 * time.Second
)

// supervise runs a service until ctx ends, starting it again when it returns or
// panics.
func supervise(ctx context.Context, s Service, log *slog.Logger) error {
	pause := restartMin
	for {
		began := time.Now()
		err := runOnce(ctx, s)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if time.Since(began) > restartReset {
			pause = restartMin
		}
		log.Error("service ended, starting it again", "service", s.Name, "err", err, "pause", pause)
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(pause):
		}
		pause = min(pause*2, restartMax)
	}
}

func runOnce(ctx context.Context, s Service) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("panic: %v\n%s", p, debug.Stack())
		}
	}()
	return s.Run(ctx)
}
