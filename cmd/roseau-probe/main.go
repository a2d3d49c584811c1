// Command roseau-probe is process 1 of the drill's guest: it brings the guest's
// devices up, serves a page, writes self-describing blocks with a flush each
// and tells a recorder outside of every flushed one. What it writes and says is
// defined in package internal/drill/probe.
package main

import (
	"fmt"
	"os"
	"runtime/debug"
	"time"

	"golang.org/x/sys/unix"
)

func main() {
	if os.Getpid() != 1 {
		fmt.Fprintln(os.Stderr, "roseau-probe: this is the init of a drill's guest; `roseau drill run` starts it")
		os.Exit(2)
	}
	debug.SetMemoryLimit(40 << 20)
	if err := run(); err != nil {
		fmt.Println("roseau-probe:", err)
	}
	// Process 1 must not end: the guest would panic and reboot, and a reboot
	// would look like a loss.
	for {
		time.Sleep(time.Hour)
	}
}

func run() error {
	g, err := bringUp()
	if err != nil {
		return err
	}
	fmt.Printf("roseau-probe: %s at %s, up after %s\n", g.config.Name, g.config.Address, uptime())
	return g.serve()
}

// uptime is the guest's CLOCK_BOOTTIME.
func uptime() time.Duration {
	var ts unix.Timespec
	if unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts) != nil {
		return 0
	}
	return time.Duration(ts.Nano())
}
