package sysmon

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// The monitor is the thread that sleeps for microseconds while others block:
// nothing else in the runtime calls nanosleep again and again.
func TestCalm(t *testing.T) {
	tid, err := monitor()
	if err != nil {
		t.Fatal(err)
	}
	file := fmt.Sprintf("/proc/%d/timerslack_ns", tid)
	before, err := os.ReadFile(file)
	if err != nil {
		t.Skipf("no timer slack here: %v", err)
	}
	t.Cleanup(func() { os.WriteFile(file, before, 0) })
	if err := calm(); err != nil {
		t.Skipf("not allowed: %v", err)
	}
	if b, err := os.ReadFile(file); err != nil || strings.TrimSpace(string(b)) != fmt.Sprint(Slack.Nanoseconds()) {
		t.Errorf("%s: %q, %v", file, b, err)
	}
	main, err := os.ReadFile("/proc/self/timerslack_ns")
	if err != nil || string(main) == fmt.Sprint(Slack.Nanoseconds()) {
		t.Errorf("the main thread has slack %s, %v", main, err)
	}

	// Somebody blocks in the kernel all the time, so that the monitor is awake.
	var p [2]int
	if err := unix.Pipe(p[:]); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for b := []byte{0}; ; {
			if n, err := unix.Read(p[0], b); n == 0 || err != nil && err != unix.EINTR {
				return
			}
		}
	}()
	defer func() { unix.Close(p[1]); <-ended; unix.Close(p[0]) }()
	nanosleep := fmt.Sprint(unix.SYS_NANOSLEEP) + " "
	deadline := time.Now().Add(30 * time.Second)
	for {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/syscall", tid))
		if err != nil {
			t.Skipf("the kernel does not say what threads do: %v", err)
		}
		if strings.HasPrefix(string(b), nanosleep) {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("thread %d never slept: %s", tid, b)
		}
		unix.Write(p[1], []byte{0})
	}
}

func TestSecond(t *testing.T) {
	for _, c := range []struct {
		pid  int
		tids []int
		want int
	}{
		{100, []int{100, 103, 101, 102}, 101},
		{100, []int{100, 107}, 107},
		{32767, []int{32767, 310, 305, 308}, 305}, // numbers began again
		{32766, []int{32766, 32767, 305}, 32767},
		{100, []int{100}, 0},
	} {
		got, err := second(c.pid, c.tids)
		if got != c.want || (err != nil) != (c.want == 0) {
			t.Errorf("process %d with %v: %d, %v; want %d", c.pid, c.tids, got, err, c.want)
		}
	}
}
