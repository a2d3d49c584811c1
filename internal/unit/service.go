package unit

import (
	"fmt"
	"strings"
	"time"
)

// ServiceFile returns the systemd service file of the unit. The files in
// packaging/ are this text.
func (u Unit) ServiceFile() string {
	var b strings.Builder
	line := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	line("# Generated from internal/unit: change it there (go test ./internal/unit -update).")
	line("[Unit]")
	line("Description=%s", u.Description)
	line("After=network-online.target")
	line("Wants=network-online.target")
	// No limit on starts: a guard is always worth another try, at BackoffMax.
	line("StartLimitIntervalSec=0")
	line("")
	line("[Service]")
	if u.Watchdog > 0 {
		line("Type=notify")
		line("NotifyAccess=main")
		line("TimeoutStartSec=infinity")
		line("WatchdogSec=%s", span(u.Watchdog))
		line("WatchdogSignal=SIGKILL")
	} else {
		line("Type=simple")
	}
	line("ExecStart=%s", strings.Join(u.Argv, " "))
	for _, e := range u.Env {
		line("Environment=%q", e)
	}
	if u.OnUnexpectedExit != nil {
		// systemd runs this after every end; the lab's init only after an unexpected
		// one. The shell makes them alike. The minus: a hook that fails changes nothing.
		line(`ExecStopPost=-/bin/sh -c '[ "$$EXIT_CODE$$EXIT_STATUS" = exited0 ] || exec %s'`, strings.Join(u.OnUnexpectedExit, " "))
	}
	line("Restart=%s", u.Restart)
	if u.Restart == RestartOnFailure {
		// systemd counts these as clean ends; nobody sends them to a process on purpose.
		line("RestartForceExitStatus=SIGHUP SIGINT SIGPIPE SIGTERM")
	}
	line("RestartSec=%s", span(u.BackoffMin))
	line("RestartSteps=%d", u.backoffSteps())
	line("RestartMaxDelaySec=%s", span(u.BackoffMax))
	line("KillMode=%s", u.KillMode)
	if u.Delegate {
		line("Delegate=yes")
		line("DelegateSubgroup=guard") // systemd before 254 does not know it: the guard moves by itself
	}
	line("TimeoutStopSec=%s", span(u.StopTimeout))
	if u.OOMContinue {
		line("OOMPolicy=continue")
	}
	line("OOMScoreAdjust=%d", u.OOMScoreAdjust)
	line("LimitNOFILE=1048576")
	line("LimitMEMLOCK=infinity")
	line("RuntimeDirectory=roseau")
	line("RuntimeDirectoryPreserve=yes")
	line("StateDirectory=roseau")
	line("UMask=0077")
	if u.Boot {
		line("")
		line("[Install]")
		line("WantedBy=multi-user.target")
	}
	return b.String()
}

// backoffSteps is how often the delay doubles on its way to BackoffMax.
func (u Unit) backoffSteps() int {
	n := 0
	for u.Delay(n) < u.BackoffMax {
		n++
	}
	return n
}

// FileName is the name of the service file: "roseau-vm@.service".
func (u Unit) FileName() string { return string(u.Name) + ".service" }

// span writes a duration as systemd reads it.
func span(d time.Duration) string {
	if d%time.Second == 0 {
		return fmt.Sprintf("%ds", d/time.Second)
	}
	return fmt.Sprintf("%dms", d.Milliseconds())
}
