package guard

import (
	"context"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"sync"

	"roseau/internal/base/errs"
	"roseau/internal/driver/ctlsock"
)

// Sizes of the console's memory, in bytes.
const (
	consoleMax  = 1 << 20   // QEMU's log is cut when it is longer
	consoleKeep = 256 << 10 // what stays, and what an attaching client sees first
)

// console shares QEMU's one serial connection among those who watch. What the
// guest said while nobody watched is in QEMU's log file.
type console struct {
	files files
	log   *slog.Logger

	mu       sync.Mutex // protects what follows
	conn     net.Conn   // to QEMU; nil: nobody watches
	watchers map[chan []byte]bool
}

func newConsole(f files, log *slog.Logger) *console {
	return &console{files: f, log: log, watchers: map[chan []byte]bool{}}
}

// attach turns a request into a raw stream: the log's end, then what comes.
func (c *console) attach(ctx context.Context, w http.ResponseWriter, r *http.Request) {
	if r.Header.Get("Upgrade") != "roseau-console" {
		ctlsock.Refuse(w, errs.New(errs.Invalid, "attach console: no Upgrade: roseau-console"))
		return
	}
	out, qemuSide, err := c.watch(ctx)
	if err != nil {
		ctlsock.Refuse(w, err)
		return
	}
	defer c.leave(out)
	h, ok := w.(http.Hijacker)
	if !ok {
		ctlsock.Refuse(w, errs.New(errs.Invalid, "attach console: the connection cannot be taken over"))
		return
	}
	conn, rw, err := h.Hijack()
	if err != nil {
		c.log.Error("attach console", "cause", err)
		return
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	if _, err := io.WriteString(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: roseau-console\r\n\r\n"); err != nil {
		return
	}
	if _, err := conn.Write(tail(c.files.serialLog(), consoleKeep)); err != nil {
		return
	}
	done := make(chan struct{})
	go func() { // ends when the client or QEMU goes; conn is closed below
		defer close(done)
		_, _ = io.Copy(qemuSide, rw.Reader) // keystrokes
		c.leave(out)
	}()
	for b := range out {
		if _, err := conn.Write(b); err != nil {
			break
		}
	}
	conn.Close()
	<-done
}

// watch joins the watchers; the first one connects to QEMU.
func (c *console) watch(ctx context.Context) (chan []byte, net.Conn, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.conn == nil {
		var d net.Dialer
		conn, err := d.DialContext(ctx, "unix", c.files.serial())
		if err != nil {
			return nil, nil, errs.New(errs.Unavailable, "attach console: %w", err).WithHint("is the VM running?")
		}
		c.conn = conn
		go c.copy(conn) // ends when conn is closed
	}
	out := make(chan []byte, 256)
	c.watchers[out] = true
	return out, c.conn, nil
}

func (c *console) leave(out chan []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.watchers[out] {
		delete(c.watchers, out)
		close(out)
	}
	if len(c.watchers) == 0 && c.conn != nil {
		c.conn.Close()
		c.conn = nil
	}
}

// copy hands what QEMU says to all; who is too slow misses some.
func (c *console) copy(conn net.Conn) {
	for {
		b := make([]byte, 4096)
		n, err := conn.Read(b)
		c.mu.Lock()
		for w := range c.watchers {
			if n > 0 {
				select {
				case w <- b[:n]:
				default:
				}
			}
			if err != nil && c.conn == conn {
				delete(c.watchers, w)
				close(w)
			}
		}
		if err != nil {
			if c.conn == conn {
				c.conn = nil
			}
			c.mu.Unlock()
			conn.Close()
			return
		}
		c.mu.Unlock()
	}
}

func (c *console) close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.conn != nil {
		c.conn.Close()
	}
}

// trim cuts the log; QEMU appends, so nothing of it is lost but the beginning.
func trimLog(path string) {
	st, err := os.Stat(path)
	if err != nil || st.Size() <= consoleMax {
		return
	}
	keep := tail(path, consoleKeep)
	if os.Truncate(path, 0) != nil {
		return
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		return
	}
	defer f.Close()
	_, _ = f.Write(keep) // a console's history, nothing more
}

// tail is the last n bytes of a file, or less.
func tail(path string, n int64) []byte {
	f, err := os.Open(path)
	if err != nil {
		return nil
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return nil
	}
	b := make([]byte, min(n, st.Size()))
	got, _ := f.ReadAt(b, max(st.Size()-n, 0))
	return b[:got]
}
