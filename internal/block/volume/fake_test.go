package volume

import (
	"crypto/tls"
	"net"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"roseau/internal/base/clock"
	"roseau/internal/base/ids"
	"roseau/internal/block/wire"
	"roseau/internal/core/repl"
	"roseau/internal/pki"
)

// fakeStorage is a storage process in memory: one disk, no durability, honest
// about promises and leases; the volumes on it share their promise and blocks. It shows the shell; the real thing is tested in
// cluster_test.go.
type fakeStorage struct {
	node, disk, session ids.ID
	l                   net.Listener

	mu       sync.Mutex
	conns    []net.Conn
	promised repl.Promise
	released bool
	grantEnd clock.Instant
	handle   wire.Handle          // given last
	valid    map[wire.Handle]bool // of the promise in force, for any volume
	told     wire.Told
	max      repl.Mark
	durable  repl.Mark
	flush    repl.Mark
	blocks   map[int64]fakeBlock // by block number
	mute     bool                // reads and answers nothing
	refuse   wire.Status         // answer to HELLO
	torn     uint32              // unverified records at the end of its log
	writes   int
}

type fakeBlock struct {
	data []byte
	tag  wire.Tag
	mark repl.Mark
}

const fakeLease = 3 * time.Second

func (f *fakeStorage) start(t *testing.T, l net.Listener) {
	f.mu.Lock()
	f.l, f.session = l, ids.New()
	f.mu.Unlock()
	go func() {
		for {
			nc, err := l.Accept()
			if err != nil {
				return
			}
			f.mu.Lock()
			f.conns = append(f.conns, nc)
			f.mu.Unlock()
			go f.serve(nc)
		}
	}()
}

// kill closes everything, as the death of the process would.
func (f *fakeStorage) kill() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.l.Close()
	for _, c := range f.conns {
		c.Close()
	}
	f.conns, f.valid = nil, nil
}

func (f *fakeStorage) serve(nc net.Conn) {
	defer nc.Close()
	dec := wire.NewDecoder(nc, wire.Heap{})
	var b wire.Batch
	for {
		m, err := dec.Next()
		if err != nil {
			return
		}
		if h, ok := m.(*wire.Hello); ok {
			dec.SetVersion(h.ProtoMax)
			f.mu.Lock()
			b.Add(&wire.HelloAck{Status: f.refuse, Node: f.node, Session: f.session, Proto: h.ProtoMax, Disks: []ids.ID{f.disk}})
			f.mu.Unlock()
		} else {
			f.mu.Lock()
			if !f.mute {
				for _, a := range f.answer(m) {
					if err := b.Add(a); err != nil {
						panic(err)
					}
				}
			}
			f.mu.Unlock()
		}
		if dec.Buffered() == 0 {
			if _, err := nc.Write(b.AppendTo(nil)); err != nil {
				return
			}
			b.Reset()
		}
	}
}

func (f *fakeStorage) answer(m wire.Message) []wire.Message {
	switch m := m.(type) {
	case *wire.Open:
		return []wire.Message{f.open(m)}
	case *wire.Heartbeat:
		a := &wire.HeartbeatAck{SendTime: m.SendTime, Grant: fakeLease, Disks: []wire.DiskHealth{{Disk: f.disk}}}
		for _, v := range m.Volumes {
			if !f.valid[v.Handle] {
				a.Refused = append(a.Refused, wire.HandleRefusal{Handle: v.Handle, Status: wire.StaleEpoch, Promised: f.promised})
			}
		}
		f.grantEnd = clock.System{}.Now().Add(fakeLease)
		return []wire.Message{a}
	case *wire.WindowReq:
		return []wire.Message{&wire.Window{ReqID: m.ReqID, Last: true}}
	case *wire.Config:
		f.told = m.Told
		return []wire.Message{&wire.ConfigAck{ReqID: m.ReqID}}
	case *wire.Flush:
		f.durable, f.flush = repl.Mark{Epoch: f.promised.Epoch, Wseq: m.Upto}, m.Piggyback.FlushMark
		return []wire.Message{&wire.FlushAck{ReqID: m.ReqID, Upto: m.Upto, Session: f.session}}
	case *wire.Release:
		f.released = true
		return []wire.Message{&wire.SimpleAck{ReqID: m.ReqID}}
	case *wire.Write:
		if !f.valid[m.Handle] {
			return []wire.Message{&wire.Ack{ReqID: m.ReqID, Status: wire.BadHandle, Mark: m.Mark}}
		}
		f.writes++
		f.max = m.Mark
		for i, crc := range m.CRC {
			data := m.Data[i*repl.BlockBytes : (i+1)*repl.BlockBytes]
			if wire.Checksum(data) != crc {
				return []wire.Message{&wire.Ack{ReqID: m.ReqID, Status: wire.Damaged, Mark: m.Mark}}
			}
			f.blocks[m.Offset/repl.BlockBytes+int64(i)] = fakeBlock{data, wire.Tag{CRC: crc, Stamp: uint32(m.Mark.Wseq)}, m.Mark}
		}
		return []wire.Message{&wire.Ack{ReqID: m.ReqID, Mark: m.Mark}}
	case *wire.Zero:
		f.max = m.Mark
		for n := m.Offset / repl.BlockBytes; n < (m.Offset+m.Length)/repl.BlockBytes; n++ {
			delete(f.blocks, n)
		}
		return []wire.Message{&wire.Ack{ReqID: m.ReqID, Mark: m.Mark}}
	case *wire.Read:
		return []wire.Message{f.read(m)}
	}
	return nil
}

func (f *fakeStorage) open(m *wire.Open) *wire.OpenAck {
	now := clock.System{}.Now()
	a := &wire.OpenAck{ReqID: m.ReqID, Promised: f.promised, Released: f.released, Told: f.told, MaxMark: f.max,
		DurableMark: f.durable, FlushMark: f.flush, WindowBytes: 64 << 20, Unverified: f.torn}
	live := f.promised.Epoch > 0 && !f.released && now.Before(f.grantEnd)
	switch {
	case f.promised.Epoch == 0 || f.released:
		a.Grant = wire.GrantNone
	case live:
		a.Grant, a.GrantLeft = wire.GrantLive, f.grantEnd.Sub(now)
	default:
		a.Grant = wire.GrantLapsed
	}
	if m.Flags&wire.OpenTry != 0 {
		return a
	}
	switch {
	case m.Promise.Epoch < f.promised.Epoch:
		a.Status = wire.StaleEpoch
		return a
	case live && m.Promise.Nonce != f.promised.Nonce && m.Flags&wire.OpenPredecessorDead == 0:
		a.Status = wire.LeaseRunning
		return a
	}
	if m.Promise != f.promised {
		f.released = false
		f.valid = nil
	}
	f.promised = m.Promise
	f.handle++
	if f.valid == nil {
		f.valid = map[wire.Handle]bool{}
	}
	f.valid[f.handle] = true
	a.Promised, a.Handle, a.Released = f.promised, f.handle, f.released
	return a
}

func (f *fakeStorage) read(m *wire.Read) *wire.ReadReply {
	r := &wire.ReadReply{ReqID: m.ReqID, Marks: []repl.Mark{f.max}}
	data := make([]byte, 0, m.Length)
	any := false
	for n := m.Offset / repl.BlockBytes; n < (m.Offset+m.Length)/repl.BlockBytes; n++ {
		b, ok := f.blocks[n]
		any = any || ok
		if !ok {
			b.data = make([]byte, repl.BlockBytes)
		}
		data = append(data, b.data...)
		r.Tags = append(r.Tags, b.tag)
	}
	if any {
		r.Data = data
	}
	return r
}

// testPKI makes identities of nodes.
type testPKI struct {
	t  *testing.T
	ca *pki.CA
}

func newPKI(t *testing.T) *testPKI {
	ca, err := pki.NewCA(ids.New(), time.Now())
	if err != nil {
		t.Fatal(err)
	}
	return &testPKI{t, ca}
}

// dir writes the identity of node into a directory and returns both.
func (p *testPKI) dir(node ids.ID, ips ...net.IP) (string, *pki.Identity) {
	p.t.Helper()
	key, csr, err := pki.NewRequest(node.String())
	if err != nil {
		p.t.Fatal(err)
	}
	cert, err := p.ca.SignNode(csr, node, append(ips, net.IPv4(127, 0, 0, 1)), time.Now())
	if err != nil {
		p.t.Fatal(err)
	}
	dir := filepath.Join(p.t.TempDir(), "pki")
	if err := (pki.Files{CA: p.ca.CertPEM(), Cert: cert, Key: key}).Write(dir); err != nil {
		p.t.Fatal(err)
	}
	id, err := pki.Load(dir)
	if err != nil {
		p.t.Fatal(err)
	}
	return dir, id
}

// listenTLS listens on a free port of 127.0.0.1 for node.
func (p *testPKI) listenTLS(node ids.ID, addr string) net.Listener {
	p.t.Helper()
	_, id := p.dir(node)
	l, err := net.Listen("tcp", addr)
	if err != nil {
		p.t.Fatal(err)
	}
	return tls.NewListener(l, id.ServerTLS())
}
