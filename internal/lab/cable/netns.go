package cable

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// newNamespace makes a network namespace that lives as long as the file.
func newNamespace() (ns *os.File, err error) {
	err = onThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("make a network namespace: %w", err)
		}
		ns, err = os.Open("/proc/thread-self/ns/net")
		if err != nil {
			return err
		}
		// Not every kernel has these; where one is absent there is nothing to switch off.
		for _, path := range []string{
			"/proc/sys/net/bridge/bridge-nf-call-iptables",
			"/proc/sys/net/bridge/bridge-nf-call-ip6tables",
			"/proc/sys/net/bridge/bridge-nf-call-arptables",
		} {
			_ = os.WriteFile(path, []byte("0"), 0)
		}
		for _, scope := range []string{"all", "default"} {
			// Router solicitations of the switches would show in recordings.
			_ = os.WriteFile("/proc/sys/net/ipv6/conf/"+scope+"/disable_ipv6", []byte("1"), 0)
		}
		return nil
	})
	return ns, err
}

// Within runs f on a thread that is in the network namespace ns.
func Within(ns *os.File, f func() error) error {
	return onThread(func() error {
		if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("enter network namespace: %w", err)
		}
		return f()
	})
}

// onThread runs f on a locked thread and brings the thread back to the network
// namespace in which it was; a thread that cannot come back ends.
func onThread(f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		home, err := os.Open("/proc/thread-self/ns/net")
		if err != nil {
			runtime.UnlockOSThread()
			done <- err
			return
		}
		defer home.Close()
		err = f()
		if back := unix.Setns(int(home.Fd()), unix.CLONE_NEWNET); back == nil {
			runtime.UnlockOSThread()
		}
		done <- err
	}()
	return <-done
}

// Dial connects from inside ns. address must not need a resolver.
func Dial(ctx context.Context, ns *os.File, network, address string) (conn net.Conn, err error) {
	err = Within(ns, func() error {
		conn, err = (&net.Dialer{}).DialContext(ctx, network, address)
		return err
	})
	return conn, err
}

// Socket makes a socket inside ns. The caller owns the file.
func Socket(ns *os.File, domain, typ, proto int) (f *os.File, err error) {
	err = Within(ns, func() error {
		fd, err := unix.Socket(domain, typ|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, proto)
		if err != nil {
			return os.NewSyscallError("socket", err)
		}
		f = os.NewFile(uintptr(fd), "socket")
		return nil
	})
	if err != nil {
		return nil, err
	}
	if f == nil {
		return nil, errors.New("make socket: bad descriptor")
	}
	return f, nil
}
