package bridge

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	"golang.org/x/sys/unix"

	"roseau/internal/base/errs"
)

// Frame is an Ethernet frame toward a guest behind the kernel's header of 10
// bytes that says what is left to do to it (checksum, segmentation), as packet
// sockets give and take it.
type Frame []byte

const (
	vnetHeader = 10    // bytes, struct virtio_net_hdr
	minFrame   = 60    // bytes, without a checksum
	maxFrame   = 65600 // bytes: a segment of 64 KiB that is still to be cut, and headers
)

// Tap reads what waits in the queue of a tap: what its QEMU, which has stopped
// reading, would have read next. It shares QEMU's file, so the tap lives until
// both are closed.
type Tap struct {
	// No os.File: it would change the mode of the file that QEMU uses.
	fd     int
	header int // bytes before each frame
}

// NewTap takes over a duplicate of QEMU's descriptor.
func NewTap(fd int) (*Tap, error) {
	n, err := unix.IoctlGetInt(fd, unix.TUNGETVNETHDRSZ)
	if err != nil || n < vnetHeader {
		return nil, errors.Join(errs.New(errs.Unavailable, "read queue of tap: its header has %d bytes: %w", n, err), unix.Close(fd))
	}
	return &Tap{fd: fd, header: n}, nil
}

// Close gives it back.
func (t *Tap) Close() error { return unix.Close(t.fd) }

// Read returns what waits, oldest first; none: nothing waits. It does not block.
func (t *Tap) Read() ([]Frame, error) {
	var list []Frame
	b := make([]byte, maxFrame+64)
	for {
		n, err := unix.Read(t.fd, b)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if errors.Is(err, unix.EAGAIN) {
			return list, nil
		}
		if err != nil {
			return list, fmt.Errorf("read tap: %w", err)
		}
		if n > t.header+14 {
			list = append(list, append(append(Frame{}, b[:vnetHeader]...), b[t.header:n]...))
		}
	}
}

// Wait waits until something can be read, or for d.
func (t *Tap) Wait(d time.Duration) {
	_, _ = unix.Poll([]unix.PollFd{{Fd: int32(t.fd), Events: unix.POLLIN}}, int(d.Milliseconds()))
}

// Socket sees and sends the frames of one tap at the kernel's side. It is not
// safe for concurrent use.
type Socket struct {
	fd    int
	index int
}

// Sighting is a frame that went into the tap's queue.
type Sighting struct {
	Frame Frame
	At    time.Time // by the kernel
}

// OpenSocket opens it. Watching, it keeps copies of what is sent to the guest
// for Seen.
func OpenSocket(tap string, watch bool) (*Socket, error) {
	dev, err := net.InterfaceByName(tap)
	if err != nil {
		return nil, fmt.Errorf("find tap %s: %w", tap, err)
	}
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("open packet socket: %w", err)
	}
	s := &Socket{fd: fd, index: dev.Index}
	err = unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_VNET_HDR, 1)
	if err == nil && watch {
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 4<<20)
		err = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TIMESTAMPNS, 1)
		if err == nil {
			err = unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: htons(unix.ETH_P_ALL), Ifindex: dev.Index})
		}
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open packet socket of %s: %w", tap, err), s.Close())
	}
	return s, nil
}

func htons(v uint16) uint16 { return v<<8 | v>>8 }

// Close closes it.
func (s *Socket) Close() error { return unix.Close(s.fd) }

// Wait waits until something was seen, or for d.
func (s *Socket) Wait(d time.Duration) {
	_, _ = unix.Poll([]unix.PollFd{{Fd: int32(s.fd), Events: unix.POLLIN}}, int(d.Milliseconds()))
}

// Seen returns what was sent toward the guest since the last call. It does not
// block.
func (s *Socket) Seen() ([]Sighting, error) {
	var list []Sighting
	b, oob := make([]byte, maxFrame), make([]byte, 128)
	for {
		n, on, _, from, err := unix.Recvmsg(s.fd, b, oob, 0)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case errors.Is(err, unix.EAGAIN):
			return list, nil
		case err != nil:
			return list, fmt.Errorf("watch tap: %w", err)
		}
		if ll, ok := from.(*unix.SockaddrLinklayer); ok && ll.Pkttype == unix.PACKET_OUTGOING && n > vnetHeader+14 {
			list = append(list, Sighting{Frame: append(Frame{}, b[:n]...), At: stamp(oob[:on])})
		}
	}
}

// stamp reads the kernel's time of a message, else takes the present one.
func stamp(oob []byte) time.Time {
	msgs, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return time.Now()
	}
	for _, m := range msgs {
		if m.Header.Level == unix.SOL_SOCKET && m.Header.Type == unix.SCM_TIMESTAMPNS && len(m.Data) >= 16 {
			return time.Unix(int64(binary.NativeEndian.Uint64(m.Data)), int64(binary.NativeEndian.Uint64(m.Data[8:])))
		}
	}
	return time.Now()
}

// Send puts a frame at the end of the tap's queue, past the bridge, which learns
// nothing from it. errs.Unavailable: the tap is down.
func (s *Socket) Send(f Frame) error {
	err := unix.Sendto(s.fd, f, 0, &unix.SockaddrLinklayer{Ifindex: s.index, Protocol: htons(unix.ETH_P_ALL)})
	if errors.Is(err, unix.ENETDOWN) {
		return errs.New(errs.Unavailable, "send to tap: %w", err)
	}
	if err != nil {
		return fmt.Errorf("send to tap: %w", err)
	}
	return nil
}

// Blank puts a frame of zeros at the head of the empty queues of taps that have
// just come up. An incoming QEMU reads one frame before it has its guest's state,
// with another header than it will have then, and so spoils it.
func (c Config) Blank() error {
	var all error
	for _, q := range c.Ports {
		s, err := OpenSocket(q.Tap, false)
		if err == nil {
			err = errors.Join(s.Send(make(Frame, vnetHeader+minFrame)), s.Close())
		}
		if err != nil {
			all = errors.Join(all, fmt.Errorf("send a blank frame to %s: %w", q.Tap, err))
		}
	}
	return all
}

// Source is the frame's sender.
func (f Frame) Source() net.HardwareAddr { return net.HardwareAddr(f[vnetHeader+6 : vnetHeader+12]) }

// WriteFrame and ReadFrame carry frames over a stream: the port's number, the
// length in 4 bytes, the frame.
func WriteFrame(w io.Writer, port int, f Frame) error {
	b := append([]byte{byte(port)}, binary.BigEndian.AppendUint32(nil, uint32(len(f)))...)
	_, err := w.Write(append(b, f...))
	return err
}

// ReadFrame reads what WriteFrame wrote. errs.Invalid: that is no frame.
func ReadFrame(r io.Reader) (port int, f Frame, err error) {
	var head [5]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return 0, nil, err
	}
	n := binary.BigEndian.Uint32(head[1:])
	if n <= vnetHeader+14 || n > maxFrame {
		return 0, nil, errs.New(errs.Invalid, "read frame: %d bytes, want %d to %d", n, vnetHeader+15, maxFrame)
	}
	f = make(Frame, n)
	_, err = io.ReadFull(r, f)
	return int(head[0]), f, err
}
