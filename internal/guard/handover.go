package guard

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"roseau/internal/base/errs"
	"roseau/internal/driver/bridge"
	"roseau/internal/driver/qemu"
)

// Frames toward the guest that reach the source between its guest's last moment
// and the destination's announcement wait in the source's tap, where QEMU does
// not read any more. The source's guard reads them and sends them after the
// guest; the destination's puts them into its tap.
const (
	// swallowed is how many frames a QEMU that stops may have read that its guest
	// never sees: one while its processors come to a halt, one after. They cannot be
	// told from the last two that the guest did see, so these may come twice.
	swallowed = 2
	// swallowWithin bounds how old they can be: QEMU's main loop stands still while
	// the last dirty pages are looked for.
	swallowWithin = 200 * time.Millisecond
	// watchRate is the number of frames a second above which copies are not worth
	// their time: then the queue alone is handed over.
	watchRate = 20000
	// handoverPoll bounds the wait for a frame.
	handoverPoll = 20 * time.Millisecond
	// linkUpLimit is how long the destination waits for its own tap to come up.
	linkUpLimit = 3 * time.Second
	// firstTap is the number of the first tap's file in QEMU; see vmplan.NIC.
	firstTap = 3
)

// handOver watches the ports of a migration's source and hands frames over once
// the guest has stopped. It ends with the migration.
func (g *guard) handOver(s *source, p *qemu.Process) {
	if p == nil || len(g.net.Ports) == 0 {
		return
	}
	g.async(func() {
		l, err := dialPeer(s.ctx, g.identity, s.peer.Node, s.peer.Addresses, s.peer.Port, message{Op: opFrames, VM: g.cfg.VM})
		if err != nil {
			g.log.Warn("hand frames over", "cause", err)
			return
		}
		defer context.AfterFunc(s.ctx, func() { l.conn.Close() })()
		done := make(chan struct{}, len(g.net.Ports))
		for i, port := range g.net.Ports {
			g.async(func() {
				defer func() { done <- struct{}{} }()
				h := handover{port: i, tap: port.Tap, out: l}
				err := h.run(s, p)
				if err != nil {
					g.log.Warn("hand frames over", "port", port.Tap, "sent", len(h.taken), "cause", err)
				} else if len(h.taken) > 0 {
					g.log.Info("frames handed over", "port", port.Tap, "count", len(h.taken), "stayed", s.stays.Load())
				}
			})
		}
		for range g.net.Ports {
			<-done
		}
	})
}

// handover is that of one port.
type handover struct {
	port  int
	tap   string
	out   *link
	taken []bridge.Frame
}

func (h *handover) run(s *source, p *qemu.Process) (err error) {
	seen, err := h.watch(s)
	if err != nil || s.ctx.Err() != nil {
		return err
	}
	fd, err := p.File(firstTap + h.port)
	if err != nil {
		return err
	}
	tap, err := bridge.NewTap(fd)
	if err != nil {
		return err
	}
	defer func() {
		if s.stays.Load() {
			err = errors.Join(err, h.giveBack())
		}
		err = errors.Join(err, tap.Close())
	}()
	queue, err := tap.Read()
	if err != nil {
		return err
	}
	last, err := seen.drain()
	if err != nil {
		return err
	}
	for {
		if len(last) > 0 { // the first time
			queue = append(missed(last, queue, s.stopAt), queue...)
			last = nil
		}
		if err := h.send(queue); err != nil || s.ctx.Err() != nil {
			return err
		}
		tap.Wait(handoverPoll)
		if queue, err = tap.Read(); err != nil {
			return nil // QEMU was killed: it is over
		}
	}
}

// sightings are the last frames that a port saw.
type sightings struct {
	sock *bridge.Socket
	list []bridge.Sighting
}

// drain returns them and closes the socket.
func (w *sightings) drain() ([]bridge.Sighting, error) {
	if w.sock == nil {
		return nil, nil
	}
	err := w.look()
	return w.list, errors.Join(err, w.sock.Close())
}

func (w *sightings) look() error {
	const keep = 64
	more, err := w.sock.Seen()
	w.list = append(w.list, more...)
	if n := len(w.list); n > keep && n > len(more) {
		w.list = slices.Clone(w.list[max(n-keep-len(more), 0):])
	}
	return err
}

// watch keeps copies of what goes to the guest until it has stopped.
func (h *handover) watch(s *source) (*sightings, error) {
	sock, err := bridge.OpenSocket(h.tap, true)
	if err != nil {
		return nil, err
	}
	w := &sightings{sock: sock}
	for {
		before := len(w.list)
		if err := w.look(); err != nil {
			return nil, errors.Join(err, sock.Close())
		}
		if n := len(w.list) - before; n > watchRate*int(handoverPoll.Milliseconds())/1000 {
			w.list, w.sock = nil, nil
			if err := sock.Close(); err != nil {
				return nil, err
			}
			select {
			case <-s.stopped:
			case <-s.ctx.Done():
			}
			return w, nil
		}
		select {
		case <-s.stopped:
			return w, nil
		case <-s.ctx.Done():
			return nil, sock.Close()
		default:
			sock.Wait(handoverPoll)
		}
	}
}

// missed returns the frames that QEMU may have swallowed: the last ones before
// the queue's first.
func missed(seen []bridge.Sighting, queue []bridge.Frame, stopAt time.Time) []bridge.Frame {
	end := len(seen)
	if len(queue) > 0 {
		end = max(0, len(seen)-len(queue))
		for i := len(seen) - 1; i >= 0; i-- {
			if bytes.Equal(seen[i].Frame[vnetBytes:], queue[0][vnetBytes:]) {
				end = i
				break
			}
		}
	}
	var list []bridge.Frame
	for _, w := range seen[max(0, end-swallowed):end] {
		if w.At.After(stopAt.Add(-swallowWithin)) {
			list = append(list, w.Frame)
		}
	}
	return list
}

// vnetBytes stand before each frame and differ between the two ways to see it.
const vnetBytes = 10

func (h *handover) send(frames []bridge.Frame) error {
	h.taken = append(h.taken, frames...)
	if len(frames) == 0 {
		return nil
	}
	h.out.mu.Lock()
	defer h.out.mu.Unlock()
	if err := h.out.conn.SetWriteDeadline(time.Now().Add(sendTimeout)); err != nil {
		return err
	}
	for _, f := range frames {
		if err := bridge.WriteFrame(h.out.conn, h.port, f); err != nil {
			return err
		}
	}
	return nil
}

// giveBack returns what was taken to a guest that stays.
func (h *handover) giveBack() error {
	if len(h.taken) == 0 {
		return nil
	}
	sock, err := bridge.OpenSocket(h.tap, false)
	if err != nil {
		return err
	}
	for _, f := range h.taken {
		err = errors.Join(err, sock.Send(f))
	}
	return errors.Join(err, sock.Close())
}

// receiveFrames puts the source's frames into the taps.
func (g *guard) receiveFrames(ctx context.Context, l *link) error {
	socks := make([]*bridge.Socket, len(g.net.Ports))
	count := 0
	defer func() {
		for _, s := range socks {
			if s != nil {
				s.Close()
			}
		}
		if count > 0 {
			g.log.Info("frames taken over", "count", count)
		}
	}()
	for {
		port, f, err := bridge.ReadFrame(l.r)
		if errors.Is(err, errs.Invalid) {
			return err
		}
		if err != nil {
			return nil // the migration is over at the source
		}
		if port >= len(socks) {
			return errs.New(errs.Invalid, "take a frame over: port %d, there are %d", port, len(socks))
		}
		if socks[port] == nil {
			if socks[port], err = bridge.OpenSocket(g.net.Ports[port].Tap, false); err != nil {
				return err
			}
		}
		if err := sendWhenUp(ctx, socks[port], f); err != nil {
			return fmt.Errorf("take a frame over: %w", err)
		}
		count++
	}
}

// sendWhenUp waits for the tap to come up: the word to do so has another
// connection.
func sendWhenUp(ctx context.Context, s *bridge.Socket, f bridge.Frame) error {
	ctx, cancel := context.WithTimeout(ctx, linkUpLimit)
	defer cancel()
	for {
		err := s.Send(f)
		if !errors.Is(err, errs.Unavailable) || !sleep(ctx, qemu.Poll/2) {
			return err
		}
	}
}
