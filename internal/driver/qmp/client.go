package qmp

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"sync"

	"roseau/internal/base/errs"
)

// Client is a connection to one QEMU. It is safe for concurrent use; commands
// are carried out by QEMU in the order of the calls.
type Client struct {
	conn    net.Conn
	version Version

	out  chan []byte   // to the writer; never blocks Fire for long: see send
	done chan struct{} // closed when the connection is over
	wg   sync.WaitGroup

	mu      sync.Mutex // protects what follows; nothing else is taken under it
	err     error      // why done is closed
	nextID  uint64
	pending map[uint64]chan message // nil channel: nobody waits
	queue   []Event
	wake    chan struct{} // buffered 1: queue is not empty

	events chan Event
}

// outLimit bounds the commands that QEMU has not read yet.
const outLimit = 1024

// Dial connects to the socket, reads the greeting and negotiates. It waits as
// long as ctx allows: a QEMU whose main loop is blocked greets late.
func Dial(ctx context.Context, socket string) (*Client, error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", socket)
	if err != nil {
		return nil, errs.New(errs.Unavailable, "connect to qemu at %s: %w", socket, err)
	}
	c, err := New(ctx, conn)
	if err != nil {
		return nil, fmt.Errorf("connect to qemu at %s: %w", socket, err)
	}
	return c, nil
}

// New negotiates on a fresh connection, which it owns from now on.
func New(ctx context.Context, conn net.Conn) (*Client, error) {
	c := &Client{
		conn: conn, out: make(chan []byte, outLimit), done: make(chan struct{}),
		pending: map[uint64]chan message{}, wake: make(chan struct{}, 1), events: make(chan Event),
	}
	greeted := make(chan Version, 1)
	c.wg.Add(3)
	go c.read(greeted)
	go c.write()
	go c.pump()
	select {
	case c.version = <-greeted:
	case <-c.done:
		return nil, errors.Join(c.Err(), c.Close())
	case <-ctx.Done():
		return nil, errors.Join(errs.New(errs.Unavailable, "wait for greeting: %w", context.Cause(ctx)), c.Close())
	}
	if err := c.Run(ctx, "qmp_capabilities", nil, nil); err != nil {
		return nil, errors.Join(err, c.Close())
	}
	return c, nil
}

// Version is that of QEMU.
func (c *Client) Version() Version { return c.version }

// Events delivers QEMU's events in order, without loss; it is closed when the
// connection is over and all were read.
func (c *Client) Events() <-chan Event { return c.events }

// Done is closed when the connection is over; Err says why.
func (c *Client) Done() <-chan struct{} { return c.done }

// Err is nil while the connection lives.
func (c *Client) Err() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.err
}

// Close ends the connection and waits for its goroutines. Idempotent. QEMU goes
// on and takes the next client.
func (c *Client) Close() error {
	c.fail(errs.New(errs.Unavailable, "connection to qemu: closed"))
	c.wg.Wait()
	return nil
}

// Run carries out a command and decodes its answer into out (nil: dropped). A
// refusal is *Error. When ctx ends first the command may still be carried out.
func (c *Client) Run(ctx context.Context, command string, args, out any) error {
	answer := make(chan message, 1)
	id, err := c.send(command, args, answer)
	if err != nil {
		return err
	}
	select {
	case m := <-answer:
		return finish(command, m, out)
	case <-ctx.Done():
		c.forget(id)
		return errs.New(errs.Unavailable, "run %s in qemu: no answer: %w", command, context.Cause(ctx))
	case <-c.done:
		select { // the answer may have come with the end
		case m := <-answer:
			return finish(command, m, out)
		default:
			return fmt.Errorf("run %s in qemu: %w", command, c.Err())
		}
	}
}

// Fire sends a command and does not wait for its answer, which is dropped. It
// never blocks. The proof that `stop` worked is the event STOP.
func (c *Client) Fire(command string, args any) error {
	_, err := c.send(command, args, nil)
	return err
}

func finish(command string, m message, out any) error {
	if m.kind == kindError {
		m.err.Command = command
		return m.err
	}
	if out == nil {
		return nil
	}
	if err := json.Unmarshal(m.ret, out); err != nil {
		return errs.New(errs.Corrupt, "run %s in qemu: decode answer: %w", command, err)
	}
	return nil
}

// send queues a command for the writer; answer nil: nobody waits.
func (c *Client) send(command string, args any, answer chan message) (uint64, error) {
	c.mu.Lock()
	defer c.mu.Unlock() // held over the queueing, so that ids go out in order
	if c.err != nil {
		return 0, fmt.Errorf("run %s in qemu: %w", command, c.err)
	}
	c.nextID++
	id := c.nextID
	b, err := json.Marshal(struct {
		Execute   string `json:"execute"`
		Arguments any    `json:"arguments,omitempty"`
		ID        uint64 `json:"id"`
	}{command, args, id})
	if err != nil {
		return 0, fmt.Errorf("run %s in qemu: %w", command, err)
	}
	select {
	case c.out <- append(b, '\n'):
	default:
		return 0, errs.New(errs.Exhausted, "run %s in qemu: %d commands wait already", command, outLimit)
	}
	c.pending[id] = answer
	return id, nil
}

func (c *Client) forget(id uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, ok := c.pending[id]; ok {
		c.pending[id] = nil
	}
}

func (c *Client) write() {
	defer c.wg.Done()
	for {
		select {
		case b := <-c.out:
			if _, err := c.conn.Write(b); err != nil {
				c.fail(errs.New(errs.Unavailable, "write to qemu: %w", err))
				return
			}
		case <-c.done:
			return
		}
	}
}

func (c *Client) read(greeted chan<- Version) {
	defer c.wg.Done()
	r := bufio.NewReaderSize(c.conn, 64<<10)
	for {
		line, err := r.ReadBytes('\n')
		if err != nil {
			c.fail(errs.New(errs.Unavailable, "read from qemu: %w", err))
			return
		}
		m, err := decode(line)
		if err != nil {
			c.fail(err)
			return
		}
		switch m.kind {
		case kindGreeting:
			select {
			case greeted <- m.qemu:
			default: // a second greeting tells nothing
			}
		case kindEvent:
			c.enqueue(m.event)
		default:
			c.answer(m)
		}
	}
}

func (c *Client) answer(m message) {
	c.mu.Lock()
	ch := c.pending[m.id]
	delete(c.pending, m.id)
	c.mu.Unlock()
	if ch != nil {
		ch <- m // buffered for the one answer
	}
}

func (c *Client) enqueue(e Event) {
	c.mu.Lock()
	c.queue = append(c.queue, e)
	c.mu.Unlock()
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

// pump moves events from the unbounded queue to whoever reads, and hands out
// what is left after the end; a reader that has gone does not hold it up.
func (c *Client) pump() {
	defer c.wg.Done()
	defer close(c.events)
	for {
		c.mu.Lock()
		batch := c.queue
		c.queue = nil
		over := c.err != nil
		c.mu.Unlock()
		for _, e := range batch {
			select {
			case c.events <- e:
			case <-c.done:
				select { // a reader that stands ready still gets it
				case c.events <- e:
				default:
				}
			}
		}
		if over && len(batch) == 0 {
			return
		}
		if len(batch) == 0 {
			select {
			case <-c.wake:
			case <-c.done:
			}
		}
	}
}

// fail ends the connection once, for the first cause.
func (c *Client) fail(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		return
	}
	c.err = err
	close(c.done)
	c.conn.Close() // its error says nothing new
}
