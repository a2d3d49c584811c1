package bmc

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// openPTY makes a terminal: near is the program's that uses it, far the one that
// a process takes for its terminal. It passes every byte.
func openPTY() (near, far *os.File, err error) {
	near, err = os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("open terminal: %w", err)
	}
	fail := func(err error) (*os.File, *os.File, error) {
		return nil, nil, errors.Join(fmt.Errorf("open terminal: %w", err), near.Close())
	}
	var number int
	raw, err := near.SyscallConn()
	if err != nil {
		return fail(err)
	}
	cerr := raw.Control(func(fd uintptr) {
		if err = unix.IoctlSetPointerInt(int(fd), unix.TIOCSPTLCK, 0); err == nil {
			number, err = unix.IoctlGetInt(int(fd), unix.TIOCGPTN)
		}
		if err != nil {
			return
		}
		var t *unix.Termios
		if t, err = unix.IoctlGetTermios(int(fd), unix.TCGETS); err == nil {
			t.Iflag, t.Oflag = 0, 0
			t.Lflag &^= unix.ECHO | unix.ICANON | unix.ISIG | unix.IEXTEN
			err = unix.IoctlSetTermios(int(fd), unix.TCSETS, t)
		}
	})
	if err := errors.Join(err, cerr); err != nil {
		return fail(err)
	}
	far, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", number), os.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fail(err)
	}
	return near, far, nil
}
