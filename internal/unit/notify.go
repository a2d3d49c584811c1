package unit

import (
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
	"time"
)

// Notifier tells the supervisor how the process is, by the sd_notify protocol.
// The zero Notifier, and one made without NOTIFY_SOCKET, says nothing.
type Notifier struct {
	conn     *net.UnixConn
	watchdog time.Duration
}

// NewNotifier reads NOTIFY_SOCKET and WATCHDOG_USEC and removes them from the
// environment, so that children cannot speak for this process.
func NewNotifier() (*Notifier, error) {
	n := &Notifier{}
	path, usec := os.Getenv("NOTIFY_SOCKET"), os.Getenv("WATCHDOG_USEC")
	for _, key := range []string{"NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"} {
		os.Unsetenv(key)
	}
	if path == "" {
		return n, nil
	}
	if us, err := strconv.ParseInt(usec, 10, 64); err == nil && us > 0 {
		n.watchdog = time.Duration(us) * time.Microsecond
	}
	if strings.HasPrefix(path, "@") { // abstract socket
		path = "\x00" + path[1:]
	}
	conn, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		return nil, fmt.Errorf("connect to the supervisor: %w", err)
	}
	n.conn = conn
	return n, nil
}

// WatchdogInterval is how often Watchdog must be called: a third of the silence
// that the supervisor bears, so that one call may be late. 0 = no watchdog.
func (n *Notifier) WatchdogInterval() time.Duration { return n.watchdog / 3 }

// Ready says that start-up is complete; the watchdog counts from here.
func (n *Notifier) Ready() error { return n.send("READY=1") }

// Watchdog says that the process is alive. Call it from the loop whose hanging
// the supervisor shall notice, not from a goroutine of its own.
func (n *Notifier) Watchdog() error { return n.send("WATCHDOG=1") }

// Stopping says that the process ends on purpose.
func (n *Notifier) Stopping() error { return n.send("STOPPING=1") }

// Status sets the one line that status commands show.
func (n *Notifier) Status(text string) error {
	return n.send("STATUS=" + strings.ReplaceAll(text, "\n", " "))
}

// Close releases the socket.
func (n *Notifier) Close() error {
	if n.conn == nil {
		return nil
	}
	return n.conn.Close()
}

func (n *Notifier) send(text string) error {
	if n.conn == nil {
		return nil
	}
	_, err := n.conn.Write([]byte(text))
	return err
}
