package guard

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync"
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
	// never sees: one while its processors come to a halt, one after, whenever that
	// comes. They cannot be told from the last two that the guest did see, so these
	// may come twice.
	swallowed = 2
	// swallowWithin bounds how old they can be: QEMU's main loop stands still while
	// the last dirty pages are looked for.
	swallowWithin = 200 * time.Millisecond
	// watchRate is the number of frames a second above which copies are not worth
	// their time: then the queue alone is handed over.
	watchRate = 20000
	// quiet is how long no frame must come after the migration's end: the networks
	// know the new place by then.
	quiet = 100 * time.Millisecond
	// handoverPoll bounds the wait for a frame.
	handoverPoll = 20 * time.Millisecond
	// upLimit is how long a source may take from its connection to the switch-over.
	upLimit = 2 * time.Hour
	// firstTap is the number of the first tap's file in QEMU; see vmplan.NIC.
	firstTap = 3
)

// handOver watches the ports of a migration's source and hands frames over once
// the guest has stopped. It is called before the stream begins; it ends when the
// migration has and no frame comes any more.
func (g *guard) handOver(s *source, p *qemu.Process) {
	if p == nil || len(g.net.Ports) == 0 {
		return
	}
	dialed := make(chan *link, 1)
	var ports sync.WaitGroup
	for i, port := range g.net.Ports {
		h, err := openHandover(i, port, p)
		if err != nil {
			g.log.Warn("hand frames over", "port", port.Tap, "cause", err)
			continue
		}
		ports.Add(1)
		g.async(func() {
			defer ports.Done()
			err := h.run(s, dialed)
			if err = errors.Join(err, h.tap.Close()); err != nil {
				g.log.Warn("hand frames over", "port", port.Tap, "sent", h.sent, "cause", err)
			} else if h.sent > 0 {
				g.log.Info("frames handed over", "port", port.Tap, "count", h.sent, "stayed", s.stays.Load())
			}
		})
	}
	g.async(func() {
		// Not the migration's context: what was taken must still arrive after its end.
		ctx, cancel := context.WithTimeout(context.WithoutCancel(s.ctx), acceptTimeout)
		defer cancel()
		l, err := dialPeer(ctx, g.identity, s.peer.Node, s.peer.Addresses, s.peer.Port, message{Op: opFrames, VM: g.cfg.VM})
		if err != nil {
			g.log.Warn("hand frames over", "cause", err)
		}
		dialed <- l // nil: nobody takes them
		ports.Wait()
		if l != nil {
			l.conn.Close()
		}
	})
}

// handover is that of one port.
type handover struct {
	port  int
	name  string
	mac   net.HardwareAddr // of the guest: what it says of itself everywhere is no news to it
	tap   *bridge.Tap      // keeps the queue, also when QEMU is gone
	seen  *sightings
	taken []bridge.Frame // out of the queue, for a guest that stays
	sent  int
}

func openHandover(i int, port bridge.Port, p *qemu.Process) (*handover, error) {
	mac, err := net.ParseMAC(port.MAC)
	if err != nil {
		return nil, err
	}
	fd, err := p.File(firstTap + i)
	if err != nil {
		return nil, err
	}
	h := &handover{port: i, name: port.Tap, mac: mac}
	if h.tap, err = bridge.NewTap(fd); err != nil {
		return nil, err
	}
	sock, err := bridge.OpenSocket(port.Tap, true)
	if err != nil {
		return nil, errors.Join(err, h.tap.Close())
	}
	h.seen = &sightings{sock: sock}
	return h, nil
}

func (h *handover) run(s *source, dialed chan *link) error {
	if stopped, err := h.watch(s); err != nil || !stopped {
		return err
	}
	defer h.seen.close()
	queue, err := h.tap.Read()
	if err = errors.Join(err, h.seen.look()); err != nil {
		return err
	}
	frames := backlog(h.seen.list, queue, s.stopAt)
	h.taken = frames[:min(len(frames), len(queue)+swallowed)]
	out := <-dialed
	dialed <- out // for the next port
	for {
		over := s.ctx.Err() != nil
		switch {
		case s.stays.Load():
			return h.giveBack()
		case out == nil:
			err = errs.New(errs.Unavailable, "no connection to the destination")
		default:
			err = h.send(out, frames)
		}
		if err != nil { // if the guest stays nothing is lost
			if <-s.ctx.Done(); s.stays.Load() {
				return h.giveBack()
			}
			return err
		}
		wait := handoverPoll
		if over {
			wait = quiet
		}
		if frames, err = h.next(wait); err != nil {
			return err
		}
		if over && len(frames) == 0 && !s.stays.Load() {
			return nil
		}
	}
}

// next returns the frames that have come since, after a while. They are those
// that were seen, not those that wait in the queue: QEMU takes one more out.
func (h *handover) next(wait time.Duration) (frames []bridge.Frame, err error) {
	if h.seen.sock == nil { // there were too many to watch
		h.tap.Wait(wait)
		return h.tap.Read()
	}
	h.seen.sock.Wait(wait)
	more, err := h.seen.sock.Seen()
	for _, m := range more {
		if !bytes.Equal(m.Frame.Source(), h.mac) {
			frames = append(frames, m.Frame)
		}
	}
	return frames, err
}

// sightings are the last frames that a port saw.
type sightings struct {
	sock *bridge.Socket
	list []bridge.Sighting
}

func (w *sightings) close() {
	if w.sock != nil {
		w.sock.Close()
		w.sock = nil
	}
}

func (w *sightings) look() error {
	const keep = 64
	if w.sock == nil {
		return nil
	}
	more, err := w.sock.Seen()
	w.list = append(w.list, more...)
	if n := len(w.list); n > keep && n > len(more) {
		w.list = slices.Clone(w.list[max(n-keep-len(more), 0):])
	}
	return err
}

// watch keeps copies of what goes to the guest until it has stopped; false: the
// migration ended before.
func (h *handover) watch(s *source) (stopped bool, err error) {
	w := h.seen
	for {
		if w.sock != nil {
			before := len(w.list)
			if err := w.look(); err != nil {
				w.close()
				return false, err
			}
			if len(w.list)-before > watchRate*int(handoverPoll.Milliseconds())/1000 {
				w.close()
				w.list = nil
			}
		}
		// Not one select: a migration may stop the guest and end between two looks,
		// and then what waits must still go after the guest.
		over := s.ctx.Err() != nil // read first, for the stop comes before the end
		select {
		case <-s.stopped:
			return true, nil
		default:
		}
		if over {
			w.close()
			return false, nil
		}
		if w.sock != nil {
			w.sock.Wait(handoverPoll)
			continue
		}
		select {
		case <-s.stopped:
		case <-s.ctx.Done():
		}
	}
}

// backlog returns what the guest has not seen, oldest first: what QEMU may have
// swallowed before the queue's head, the queue, and what came since. queue was
// read before the last of seen.
func backlog(seen []bridge.Sighting, queue []bridge.Frame, stopAt time.Time) (list []bridge.Frame) {
	head := len(seen)
	if i := slices.IndexFunc(seen, func(w bridge.Sighting) bool { return !w.At.Before(stopAt) }); i >= 0 {
		head = i
	}
	unseen := len(queue) // how many of the queue came before the watch
	for k := range queue {
		if i := find(seen, queue[k:]); i >= 0 {
			head, unseen = i, k
			break
		}
	}
	list = append(list, queue[:unseen]...)
	if unseen == 0 {
		for _, w := range seen[max(0, head-swallowed):head] {
			if w.At.After(stopAt.Add(-swallowWithin)) {
				list = append(list, w.Frame)
			}
		}
	}
	for _, w := range seen[head:] {
		list = append(list, w.Frame)
	}
	return list
}

// find returns where the frames begin in what was seen, or -1.
func find(seen []bridge.Sighting, frames []bridge.Frame) int {
	for i := 0; i+len(frames) <= len(seen); i++ {
		equal := true
		for k := range frames {
			if equal = bytes.Equal(seen[i+k].Frame[vnetBytes:], frames[k][vnetBytes:]); !equal {
				break
			}
		}
		if equal {
			return i
		}
	}
	return -1
}

// vnetBytes stand before each frame and differ between the two ways to see it.
const vnetBytes = 10

func (h *handover) send(out *link, frames []bridge.Frame) error {
	if len(frames) == 0 {
		return nil
	}
	out.mu.Lock()
	defer out.mu.Unlock()
	if err := out.conn.SetWriteDeadline(time.Now().Add(sendTimeout)); err != nil {
		return err
	}
	for _, f := range frames {
		if err := bridge.WriteFrame(out.conn, h.port, f); err != nil {
			return err
		}
		h.sent++
	}
	return nil
}

// giveBack returns what was taken to a guest that stays.
func (h *handover) giveBack() error {
	if len(h.taken) == 0 {
		return nil
	}
	sock, err := bridge.OpenSocket(h.name, false)
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
	select { // the word to take frames has another connection
	case <-g.dst.up:
	case <-ctx.Done():
		return nil
	case <-time.After(upLimit):
		return errs.New(errs.Unavailable, "take frames over: the ports did not come up")
	}
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
		if err := socks[port].Send(f); err != nil {
			return fmt.Errorf("take a frame over: %w", err)
		}
		count++
	}
}
