package guard

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"sync"
	"time"

	"roseau/internal/base/errs"
	"roseau/internal/base/ids"
)

// The two guards of a migration talk over mutual TLS on the destination's
// migration port. The first line of a connection says what it is:
//
//	control  the conversation of one migration, JSON lines both ways
//	stream   QEMU's migration stream, raw, from the source to the destination
//	frames   frames toward the guest that were still queued at the source
//	ask      "what became of it?", one line back
//
// So the stream is encrypted and authenticated without QEMU's own TLS, and no
// port of QEMU is open to a network.
type op string

const (
	opControl   op = "control"
	opStream    op = "stream"
	opFrames    op = "frames"
	opAsk       op = "ask"
	opAccept    op = "accept"
	opRefuse    op = "refuse"
	opSwitch    op = "switch"   // the guest is stopped at the source
	opCancel    op = "cancel"   // answer never or committed
	opReleased  op = "released" // by the source
	opNever     op = "never"
	opCommitted op = "committed"
	opUndecided op = "undecided" // answer to ask
)

// message is one line. It holds no secret.
type message struct {
	Op     op     `json:"op"`
	VM     ids.ID `json:"vm,omitzero"`
	Run    ids.ID `json:"run,omitzero"`
	Epoch  uint64 `json:"epoch,omitempty"`
	Paused bool   `json:"paused,omitempty"` // with switch: by its user
	Text   string `json:"text,omitempty"`   // with refuse: why
}

// maxLine bounds a line of the conversation, in bytes.
const maxLine = 4096

func decodeMessage(line []byte) (message, error) {
	var m message
	d := json.NewDecoder(bytes.NewReader(line))
	d.DisallowUnknownFields()
	if err := d.Decode(&m); err != nil {
		return message{}, errs.New(errs.Invalid, "decode message of a peer guard: %w", err)
	}
	switch m.Op {
	case opControl, opStream, opFrames, opAsk, opAccept, opRefuse, opSwitch, opCancel, opReleased, opNever, opCommitted, opUndecided:
		return m, nil
	}
	return message{}, errs.New(errs.Invalid, "decode message of a peer guard: unknown op %q", m.Op)
}

// link is a connection to another guard.
type link struct {
	conn net.Conn
	r    *bufio.Reader
	mu   sync.Mutex // one writer at a time
}

func newLink(c net.Conn) *link { return &link{conn: c, r: bufio.NewReaderSize(c, maxLine)} }

// sendTimeout bounds a line's way into the socket. What follows on the same
// connection, a stream that may last for minutes, has no limit.
const sendTimeout = 2 * time.Second

func (l *link) send(m message) error {
	b, err := json.Marshal(m)
	if err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := l.conn.SetWriteDeadline(time.Now().Add(sendTimeout)); err != nil {
		return err
	}
	if _, err := l.conn.Write(append(b, '\n')); err != nil {
		return err
	}
	return l.conn.SetWriteDeadline(time.Time{})
}

func (l *link) receive() (message, error) {
	line, err := l.r.ReadSlice('\n')
	if err != nil {
		return message{}, err
	}
	return decodeMessage(line)
}

// receiveWithin is receive with a limit.
func (l *link) receiveWithin(d time.Duration) (message, error) {
	if err := l.conn.SetReadDeadline(time.Now().Add(d)); err != nil {
		return message{}, err
	}
	m, err := l.receive()
	if err != nil {
		return m, err
	}
	return m, l.conn.SetReadDeadline(time.Time{})
}

// dialPeer connects to a node's guard by the first address that answers.
func dialPeer(ctx context.Context, id Identity, node ids.ID, addrs []string, port int, hello message) (*link, error) {
	var all error
	for _, a := range addrs {
		d := tls.Dialer{NetDialer: &net.Dialer{Timeout: 3 * time.Second, KeepAliveConfig: net.KeepAliveConfig{
			Enable: true, Idle: time.Second, Interval: time.Second, Count: 3}}, Config: id.ClientTLS(node)}
		c, err := d.DialContext(ctx, "tcp", net.JoinHostPort(a, strconv.Itoa(port)))
		if err != nil {
			all = errors.Join(all, err)
			continue
		}
		l := newLink(c)
		if err := l.send(hello); err != nil {
			all = errors.Join(all, err, c.Close())
			continue
		}
		return l, nil
	}
	return nil, errs.New(errs.Unavailable, "connect to the guard on node %s: %w", node, all)
}

// pipe copies both ways until one side ends, then closes both.
func pipe(a, b io.ReadWriteCloser) error {
	var wg sync.WaitGroup
	var first error
	var once sync.Once
	end := func(err error) {
		once.Do(func() {
			first = err
			// The reader of what was written last must still get it: QEMU closes
			// its side when its stream is complete, TLS and unix sockets keep what
			// is under way when the writer closes.
			a.Close()
			b.Close()
		})
	}
	wg.Go(func() { _, err := io.CopyBuffer(a, b, make([]byte, 256<<10)); end(err) })
	wg.Go(func() { _, err := io.CopyBuffer(b, a, make([]byte, 256<<10)); end(err) })
	wg.Wait()
	if first != nil && !errors.Is(first, net.ErrClosed) {
		return fmt.Errorf("pipe: %w", first)
	}
	return nil
}
