package labclient

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"roseau/internal/base/errs"
)

// SocketRequest asks the daemon for a socket made in one of the lab's namespaces.
type SocketRequest struct {
	Namespace string `json:"namespace"` // outside; or a switch: cluster, storage, vm
	Domain    int    `json:"domain"`
	Type      int    `json:"type"`
	Protocol  int    `json:"protocol"`
}

// SocketAnswer comes with the socket, or says why there is none.
type SocketAnswer struct {
	Error string `json:"error,omitempty"`
}

// Socket returns a non-blocking socket made in a namespace of the lab: in
// "outside" to be a client of the VMs, in a switch to record its frames. An
// AF_PACKET socket in a switch sees every frame once where it enters and once
// for each port that it leaves; Status.Ports tells which interface index is
// whose, and keeps its numbers while nodes come and go.
func (c *Client) Socket(ctx context.Context, req SocketRequest) (*os.File, error) {
	raw, err := (&net.Dialer{}).DialContext(ctx, "unix", filepath.Join(c.dir, FDSocket))
	if err != nil {
		return nil, errs.New(errs.Unavailable, "reach lab %s: %w", filepath.Base(c.dir), err)
	}
	defer raw.Close()
	stop := context.AfterFunc(ctx, func() { raw.Close() })
	defer stop()
	conn := raw.(*net.UnixConn)
	if err := json.NewEncoder(conn).Encode(req); err != nil {
		return nil, fmt.Errorf("ask for a socket: %w", err)
	}
	buf, oob := make([]byte, 4096), make([]byte, unix.CmsgSpace(4))
	n, oobn, _, _, err := conn.ReadMsgUnix(buf, oob)
	if err != nil {
		return nil, fmt.Errorf("ask for a socket: %w", errors.Join(err, ctx.Err()))
	}
	files, err := received(oob[:oobn])
	if err != nil {
		return nil, err
	}
	var a SocketAnswer
	if err := json.Unmarshal(buf[:n], &a); err != nil {
		return nil, fmt.Errorf("ask for a socket: %w", err)
	}
	if a.Error != "" || len(files) != 1 {
		for _, f := range files {
			f.Close()
		}
		return nil, fmt.Errorf("ask for a socket: %s", a.Error)
	}
	return files[0], nil
}

func received(oob []byte) (files []*os.File, err error) {
	msgs, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, fmt.Errorf("ask for a socket: %w", err)
	}
	for i := range msgs {
		fds, err := unix.ParseUnixRights(&msgs[i])
		if err != nil {
			return nil, fmt.Errorf("ask for a socket: %w", err)
		}
		for _, fd := range fds {
			unix.CloseOnExec(fd)
			if err := unix.SetNonblock(fd, true); err != nil {
				return nil, err
			}
			files = append(files, os.NewFile(uintptr(fd), "lab socket"))
		}
	}
	return files, nil
}

// DialOutside connects from the outside host, the way a client of the VMs would.
// network is tcp or udp, address an IPv4 address and port. It fits
// http.Transport.DialContext.
func (c *Client) DialOutside(ctx context.Context, network, address string) (net.Conn, error) {
	to, err := netip.ParseAddrPort(address)
	if err != nil || !to.Addr().Is4() {
		return nil, errs.New(errs.Invalid, "dial %q from outside the lab: want an IPv4 address and a port", address)
	}
	typ := unix.SOCK_STREAM
	if network == "udp" || network == "udp4" {
		typ = unix.SOCK_DGRAM
	} else if network != "tcp" && network != "tcp4" {
		return nil, errs.New(errs.Invalid, "dial %q from outside the lab: want tcp or udp, not %q", address, network)
	}
	f, err := c.Socket(ctx, SocketRequest{Namespace: "outside", Domain: unix.AF_INET, Type: typ})
	if err != nil {
		return nil, err
	}
	if err := connect(ctx, f, &unix.SockaddrInet4{Addr: to.Addr().As4(), Port: int(to.Port())}); err != nil {
		f.Close()
		return nil, &net.OpError{Op: "dial", Net: network, Addr: net.TCPAddrFromAddrPort(to), Err: err}
	}
	conn, err := net.FileConn(f) // duplicates
	return conn, errors.Join(err, f.Close())
}

// connect waits for the connection of a non-blocking socket until ctx ends.
func connect(ctx context.Context, f *os.File, to unix.Sockaddr) error {
	fd := int(f.Fd())
	if err := unix.SetNonblock(fd, true); err != nil { // Fd made it blocking
		return err
	}
	err := unix.Connect(fd, to)
	if err == nil || !errors.Is(err, unix.EINPROGRESS) {
		return err
	}
	const tickMS = 20 // how late an end of ctx may be noticed
	for {
		fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLOUT}}
		n, err := unix.Poll(fds, tickMS)
		if err != nil && !errors.Is(err, unix.EINTR) {
			return err
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if n > 0 {
			code, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ERROR)
			if err == nil && code != 0 {
				err = unix.Errno(code)
			}
			return err
		}
	}
}
