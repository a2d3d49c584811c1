// Package sysmon makes Go's monitor thread wake up less often in the processes of
// the data path.
//
// The runtime's monitor looks for threads that block in the kernel, every 20 us as
// long as it finds some. A process that waits for disks and sockets always has
// some: the monitors of four such processes took a tenth of the CPU time, and
// each wake-up interrupted the work it looked at. The kernel may delay a wake-up
// by the thread's timer slack, which is 50 us by default; a longer one makes the
// monitor slower. A thread that the monitor itself starts inherits it: timers that
// such a thread waits for may come late by as much. Nothing here lives by
// timers of less than some milliseconds.
//
// What the monitor does may come late by that much: to give the processor of a
// blocked goroutine to another one, and to stop one that computes for over 10 ms.
// An idle monitor sleeps up to 10 ms by the runtime's own rules, so nothing could
// have relied on less. Half a millisecond was not enough: the first system call
// after a pause wakes an idle monitor, so at depth 1 each request woke it once.
package sysmon

import (
	"fmt"
	"log/slog"
	"os"
	"strconv"
	"time"
)

// Slack is how much later than it asks for the monitor may wake up.
const Slack = 2 * time.Millisecond

// Calm gives the monitor thread of this process its slack. It may be called more
// than once. Where that is not allowed (without CAP_SYS_NICE) or not possible, log
// hears of it, and it costs CPU time only.
func Calm(log *slog.Logger) {
	if err := calm(); err != nil {
		log.Info("the runtime's monitor thread stays as it is", "cause", err)
	}
}

func calm() error {
	tid, err := monitor()
	if err != nil {
		return err
	}
	return os.WriteFile(fmt.Sprintf("/proc/%d/timerslack_ns", tid), []byte(strconv.FormatInt(Slack.Nanoseconds(), 10)), 0)
}

// monitor is the number of the monitor's thread: the runtime starts it before any
// other, so its number follows that of the process, the main thread.
func monitor() (int, error) {
	dir, err := os.ReadDir("/proc/self/task")
	if err != nil {
		return 0, err
	}
	var list []int
	for _, e := range dir {
		tid, err := strconv.Atoi(e.Name())
		if err != nil {
			return 0, err
		}
		list = append(list, tid)
	}
	return second(os.Getpid(), list)
}

// second is the thread that was started first after the main one, whose number is
// pid: numbers rise, and begin again from low ones at the end.
func second(pid int, tids []int) (int, error) {
	next, lowest := 0, 0
	for _, t := range tids {
		switch {
		case t > pid && (next == 0 || t < next):
			next = t
		case t < pid && (lowest == 0 || t < lowest):
			lowest = t
		}
	}
	switch {
	case next != 0:
		return next, nil
	case lowest != 0:
		return lowest, nil
	}
	return 0, fmt.Errorf("process %d has one thread", pid)
}
