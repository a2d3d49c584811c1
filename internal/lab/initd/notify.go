package initd

import (
	"bytes"
	"errors"
	"net"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// notifySocket is the server's end of sd_notify for one life of one unit. The
// socket's name says who speaks; it is reachable for root alone.
type notifySocket struct {
	conn     *net.UnixConn
	path     string
	watchdog time.Duration
	done     sync.WaitGroup
}

func listenNotify(path string, watchdog time.Duration) (*notifySocket, error) {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		return nil, err
	}
	return &notifySocket{conn: conn, path: path, watchdog: watchdog}, nil
}

// serve reads messages until close. ready is called at READY=1; expired once,
// when the watchdog was silent for too long since READY=1.
func (n *notifySocket) serve(ready, expired func()) {
	n.done.Add(1)
	go func() {
		defer n.done.Done()
		buf := make([]byte, 4096)
		armed := false
		for {
			size, err := n.conn.Read(buf)
			if errors.Is(err, os.ErrDeadlineExceeded) {
				// This process may have been late itself: what is already in the
				// socket counts.
				if size = n.pending(buf); size == 0 {
					expired()
					return
				}
				err = nil
			}
			if err != nil {
				return // closed
			}
			isReady, isBeat := parseNotify(buf[:size])
			if isReady {
				ready()
				armed = true
			}
			if n.watchdog > 0 && armed && (isReady || isBeat) {
				if n.conn.SetReadDeadline(time.Now().Add(n.watchdog)) != nil {
					return
				}
			}
		}
	}()
}

// pending reads one message without waiting; 0 if there is none.
func (n *notifySocket) pending(buf []byte) (size int) {
	if n.conn.SetReadDeadline(time.Time{}) != nil {
		return 0
	}
	raw, err := n.conn.SyscallConn()
	if err != nil {
		return 0
	}
	_ = raw.Read(func(fd uintptr) bool {
		got, _, err := unix.Recvfrom(int(fd), buf, unix.MSG_DONTWAIT)
		if err == nil {
			size = got
		}
		return true
	})
	return size
}

// parseNotify looks for the two assignments that matter.
func parseNotify(msg []byte) (ready, beat bool) {
	for line := range bytes.SplitSeq(msg, []byte("\n")) {
		switch string(line) {
		case "READY=1":
			ready = true
		case "WATCHDOG=1":
			beat = true
		}
	}
	return ready, beat
}

func (n *notifySocket) close() {
	n.conn.Close() // also removes the socket file
	n.done.Wait()
}
