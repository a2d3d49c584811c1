package drill

import (
	"context"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"
	"time"

	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv4"
)

// lostAfter is the time without an answer after which a ping counts as lost.
const lostAfter = time.Second

// pinger sends an echo request every interval and keeps when each was answered.
type pinger struct {
	conn net.PacketConn
	dst  netip.Addr
	id   uint16

	mu      sync.Mutex
	sent    []time.Time
	rtt     []time.Duration // 0 = no answer yet
	answers []time.Time
	done    chan struct{}
	wait    sync.WaitGroup
}

// startPings pings dst from the vantage until stop.
func startPings(ctx context.Context, v Vantage, dst netip.Addr, interval time.Duration) (*pinger, error) {
	conn, err := v.ListenICMP(ctx)
	if err != nil {
		return nil, err
	}
	p := &pinger{conn: conn, dst: dst, id: uint16(rand.Uint32()), done: make(chan struct{})}
	p.wait.Add(2)
	go p.send(interval)
	go p.receive()
	return p, nil
}

func (p *pinger) send(interval time.Duration) {
	defer p.wait.Done()
	tick := time.NewTicker(interval)
	defer tick.Stop()
	for {
		select {
		case <-p.done:
			return
		case <-tick.C:
		}
		p.mu.Lock()
		seq := len(p.sent)
		p.sent, p.rtt = append(p.sent, time.Now()), append(p.rtt, 0)
		p.mu.Unlock()
		data := binary.BigEndian.AppendUint32(nil, uint32(seq))
		msg := icmp.Message{Type: ipv4.ICMPTypeEcho, Body: &icmp.Echo{ID: int(p.id), Seq: seq & 0xffff, Data: data}}
		b, err := msg.Marshal(nil)
		if err == nil {
			// A send that fails (no route while the port moves) is a ping
			// without an answer: exactly what is counted.
			p.conn.WriteTo(b, &net.IPAddr{IP: p.dst.AsSlice()})
		}
	}
}

func (p *pinger) receive() {
	defer p.wait.Done()
	buf := make([]byte, 1500)
	for {
		n, _, err := p.conn.ReadFrom(buf)
		if err != nil {
			if errors.Is(err, os.ErrDeadlineExceeded) || errors.Is(err, net.ErrClosed) {
				return
			}
			continue
		}
		now := time.Now()
		msg, err := icmp.ParseMessage(1, buf[:n])
		if err != nil || msg.Type != ipv4.ICMPTypeEchoReply {
			continue
		}
		echo, ok := msg.Body.(*icmp.Echo)
		if !ok || echo.ID != int(p.id) || len(echo.Data) < 4 {
			continue
		}
		seq := int(binary.BigEndian.Uint32(echo.Data))
		p.mu.Lock()
		if seq < len(p.sent) && p.rtt[seq] == 0 {
			p.rtt[seq] = max(now.Sub(p.sent[seq]), 1)
			p.answers = append(p.answers, now)
		}
		p.mu.Unlock()
	}
}

// pingFigures are what a run of pings gave.
type pingFigures struct {
	sent, lost         int
	longestGap         time.Duration
	rttMedian, rttMax  time.Duration
	series             Series
	answeredAtLeastOne bool
	lostAt             []time.Time // when they were sent
}

// stop ends the pings, waits for late answers and returns the figures. since is
// the zero of the series.
func (p *pinger) stop(since time.Time) pingFigures {
	close(p.done)
	p.conn.SetReadDeadline(time.Now().Add(lostAfter))
	p.wait.Wait()
	p.conn.Close()
	f := pingFigures{sent: len(p.sent), series: Series{Name: "round trip"}}
	var rtts []time.Duration
	for i, r := range p.rtt {
		if r == 0 || r > lostAfter {
			f.lost++
			f.lostAt = append(f.lostAt, p.sent[i])
			continue
		}
		rtts = append(rtts, r)
		f.series.X = append(f.series.X, p.sent[i].Sub(since).Seconds())
		f.series.Y = append(f.series.Y, float64(r.Microseconds())/1000)
	}
	for i := 1; i < len(p.answers); i++ {
		f.longestGap = max(f.longestGap, p.answers[i].Sub(p.answers[i-1]))
	}
	if len(rtts) > 0 {
		f.answeredAtLeastOne = true
		f.rttMax = slices.Max(rtts)
		slices.Sort(rtts)
		f.rttMedian = rtts[len(rtts)/2]
	}
	return f
}

// ms is a duration in milliseconds with one decimal, as figures are written.
func ms(d time.Duration) float64 { return float64(d.Round(100*time.Microsecond).Microseconds()) / 1000 }
