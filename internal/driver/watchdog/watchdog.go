// Package watchdog opens the kernel's hardware watchdog. Once open it resets the
// machine unless it is fed within its timeout; Close disarms it, the end of the
// process without Close does not.
package watchdog

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"roseau/internal/base/errs"
)

// Device is where the kernel shows it.
const Device = "/dev/watchdog"

// Dog is an open watchdog.
type Dog struct {
	f       *os.File
	timeout time.Duration
}

// Open arms the watchdog at path with a timeout of whole seconds. A regular file
// stands for one in labs and tests: it takes what is written and resets nothing.
func Open(path string, timeout time.Duration) (*Dog, error) {
	f, err := os.OpenFile(path, os.O_WRONLY|unix.O_CLOEXEC, 0)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, errs.New(errs.Unavailable, "open watchdog %s: this machine shows none", path).WithHint("load its driver, or softdog: `modprobe softdog`")
	case errors.Is(err, unix.EBUSY):
		return nil, errs.New(errs.Conflict, "open watchdog %s: another program has it", path).WithHint("systemd takes it with RuntimeWatchdogSec: one of the two")
	case err != nil:
		return nil, fmt.Errorf("open watchdog: %w", err)
	}
	d := &Dog{f: f, timeout: timeout}
	st, err := f.Stat()
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open watchdog: %w", err), f.Close())
	}
	if !st.Mode().IsRegular() {
		err = unix.IoctlSetPointerInt(int(f.Fd()), unix.WDIOC_SETTIMEOUT, int(timeout/time.Second))
		if err != nil {
			// Disarmed at once: with a timeout that nobody knows it is not safe to hold.
			return nil, errors.Join(errs.New(errs.Unavailable, "set the timeout of watchdog %s to %s: %w", path, timeout, err).WithHint("choose one that its driver takes"), d.Close())
		}
	}
	return d, d.Feed()
}

// Timeout is what the watchdog was set to.
func (d *Dog) Timeout() time.Duration { return d.timeout }

// Feed starts its time again.
func (d *Dog) Feed() error {
	_, err := d.f.Write([]byte{0})
	return err
}

// Close disarms it: the driver takes the letter V for an orderly end.
func (d *Dog) Close() error {
	_, err := d.f.Write([]byte("V"))
	return errors.Join(err, d.f.Close())
}
