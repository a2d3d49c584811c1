package guard

import (
	"net"
	"testing"
	"time"
)

// deadlineConn remembers the deadline for writes.
type deadlineConn struct {
	net.Conn
	write time.Time
}

func (c *deadlineConn) Write(b []byte) (int, error)        { return len(b), nil }
func (c *deadlineConn) SetWriteDeadline(t time.Time) error { c.write = t; return nil }

// A migration's stream follows the first line on the same connection: a limit
// left behind would break every migration that outlasts it.
func TestSendLeavesNoDeadline(t *testing.T) {
	c := new(deadlineConn)
	if err := newLink(c).send(message{Op: opStream}); err != nil {
		t.Fatal(err)
	}
	if !c.write.IsZero() {
		t.Errorf("after a line the connection breaks at %s", c.write)
	}
}
