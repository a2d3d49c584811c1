package wire

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"reflect"
	"testing"
	"testing/iotest"
	"time"

	"github.com/google/go-cmp/cmp"

	"roseau/internal/core/repl"
)

// random returns a valid message of kind k.
func random(k kind, rng *rand.Rand) Message {
	m := constructors[k]()
	fill(reflect.ValueOf(m).Elem(), rng)
	repair(m, rng)
	return m
}

// fill puts random values into every field.
func fill(v reflect.Value, rng *rand.Rand) {
	switch v.Kind() {
	case reflect.Struct:
		for i := range v.NumField() {
			fill(v.Field(i), rng)
		}
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), rng.IntN(4), 4))
		fallthrough
	case reflect.Array:
		for i := range v.Len() {
			fill(v.Index(i), rng)
		}
	case reflect.Bool:
		v.SetBool(rng.IntN(2) == 0)
	case reflect.Int64:
		v.SetInt(int64(rng.Uint64()))
	default:
		v.SetUint(rng.Uint64() >> (64 - v.Type().Bits()))
	}
}

// repair makes the random fields of m obey the limits.
func repair(m Message, rng *rand.Rand) {
	dur := func(d time.Duration) time.Duration { return d & (1<<62 - 1) }
	blocks := 1 + rng.IntN(5)
	off := int64(rng.IntN(100))*repl.ExtentBytes + int64(rng.IntN(8))*repl.BlockBytes
	data := func(n int) []byte {
		if n == 0 {
			return nil
		}
		b := make([]byte, n*repl.BlockBytes)
		for i := range b {
			b[i] = byte(rng.Uint32())
		}
		return b
	}
	switch m := m.(type) {
	case *Open:
		m.Flags &= OpenTry | OpenPredecessorDead
		m.SizeBytes &= 1<<62 - 1
	case *OpenAck:
		m.Grant %= GrantUnknown + 1
		m.GrantLeft = dur(m.GrantLeft)
		rising(m.Told.Snaps)
	case *Config:
		rising(m.Told.Snaps)
	case *Window:
		for i := range m.Entries {
			e := &m.Entries[i]
			e.Kind = e.Kind%3 + 1
			e.Block, e.Count, e.CRC = e.Block%1000, uint16(rng.IntN(20)), nil
			if e.Kind == RecordWrite {
				e.CRC = make([]uint32, e.Count)
			}
		}
	case *Write:
		m.Flags &= WriteFUA | WriteResent
		m.Offset, m.Data, m.CRC = off, data(blocks), make([]uint32, blocks)
		for i := range m.CRC {
			m.CRC[i] = Checksum(m.Data[i*repl.BlockBytes:][:repl.BlockBytes])
		}
	case *Zero:
		m.Flags &= WriteFUA | WriteResent | ZeroDiscard
		m.Offset, m.Length = off, int64(blocks)*repl.BlockBytes
	case *Ack:
		if m.Status == OK {
			m.Promised = repl.Promise{}
		}
	case *Read:
		m.Offset, m.Length = off, int64(blocks)*repl.BlockBytes
	case *SnapRead:
		m.Offset, m.Length, m.Snapshot = off, int64(blocks)*repl.BlockBytes, m.Snapshot|1
	case *ReadReply:
		m.Marks, m.Data = m.Marks[:min(1, len(m.Marks))], data(rng.IntN(3))
		m.Bad = nil
		for i := range m.Tags {
			if rng.IntN(2) == 0 {
				m.Bad = append(m.Bad, uint16(i))
			}
		}
	case *Heartbeat:
		m.SendTime, m.Stalled = m.SendTime&(1<<62-1), dur(m.Stalled)
	case *HeartbeatAck:
		m.SendTime, m.Grant = m.SendTime&(1<<62-1), dur(m.Grant)
		for i := range m.Disks {
			m.Disks[i].ProbeAge = dur(m.Disks[i].ProbeAge)
		}
	case *ExtTags:
		m.Tags = nil
		if rng.IntN(2) == 0 {
			m.Tags = make([]Tag, repl.ExtentBlocks)
			m.Tags[rng.IntN(repl.ExtentBlocks)] = Tag{rng.Uint32(), rng.Uint32()}
		}
	case *SyncWrite:
		m.Blocks = nil
		n := 0
		for i := range blocks {
			b := SyncBlock{Block: uint16(i * 7)}
			if rng.IntN(3) > 0 {
				b.Tag = Tag{rng.Uint32(), 1 + uint32(rng.IntN(9))}
				n++
			}
			m.Blocks = append(m.Blocks, b)
		}
		m.Data = data(n)
	case *Damage:
		for i := range m.Blocks {
			m.Blocks[i].Block = uint16(i * 11)
		}
	case *Repair:
		m.Block %= repl.ExtentBlocks
		m.Tag = Tag{1, 2}
		m.Data = data(1)
	}
}

func rising(list []uint32) {
	for i := range list {
		list[i] = uint32(i) + 1
	}
}

// diff compares up to nil against empty, which the encoding does not tell apart.
func diff(a, b Message) string { return cmp.Diff(a, b, emptyIsNil) }

var emptyIsNil = cmp.FilterValues(func(a, b any) bool {
	va, vb := reflect.ValueOf(a), reflect.ValueOf(b)
	return va.Kind() == reflect.Slice && vb.Kind() == reflect.Slice && va.Len() == 0 && vb.Len() == 0
}, cmp.Comparer(func(a, b any) bool { return true }))

func TestRoundTrip(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 0))
	var sent []Message
	var batch Batch
	for range 8 {
		for k := kindHello; k < kindEnd; k++ {
			m := random(k, rng)
			if err := batch.Add(m); err != nil {
				t.Fatalf("%T: %v", m, err)
			}
			sent = append(sent, m)
		}
	}
	var viaWritev bytes.Buffer
	if n, err := batch.Buffers().WriteTo(&viaWritev); err != nil || n != int64(batch.Len()) {
		t.Fatalf("wrote %d of %d: %v", n, batch.Len(), err)
	}
	if !bytes.Equal(viaWritev.Bytes(), batch.AppendTo(nil)) {
		t.Fatal("Buffers and AppendTo differ")
	}
	for name, r := range map[string]io.Reader{
		"whole":  bytes.NewReader(viaWritev.Bytes()),
		"halves": iotest.HalfReader(bytes.NewReader(viaWritev.Bytes())),
	} {
		d := NewDecoder(r, Heap{})
		d.SetVersion(ProtocolVersion)
		for i, want := range sent {
			got, err := d.Next()
			if err != nil {
				t.Fatalf("%s: message %d (%T): %v", name, i, want, err)
			}
			if s := diff(want, got); s != "" {
				t.Fatalf("%s: message %d differs (-sent +got):\n%s", name, i, s)
			}
		}
		if _, err := d.Next(); err != io.EOF {
			t.Fatalf("%s: at the end: %v", name, err)
		}
	}
	batch.Reset()
	if batch.Len() != 0 || len(batch.AppendTo(nil)) != 0 {
		t.Fatal("not empty after Reset")
	}
}

// A stream cut anywhere yields the whole messages before the cut and then
// io.EOF or io.ErrUnexpectedEOF; a flipped bit outside block data is noticed.
func TestCutAndFlip(t *testing.T) {
	rng := rand.New(rand.NewPCG(2, 0))
	for k := kindHello; k < kindEnd; k++ {
		head, payload, err := Append(nil, random(k, rng))
		if err != nil {
			t.Fatal(err)
		}
		whole := append(bytes.Clone(head), payload...)
		next := func(b []byte) error {
			d := NewDecoder(bytes.NewReader(b), Heap{})
			d.SetVersion(ProtocolVersion)
			_, err := d.Next()
			return err
		}
		for range 50 {
			n := rng.IntN(len(whole))
			want := io.ErrUnexpectedEOF
			if n == 0 {
				want = io.EOF
			}
			if err := next(whole[:n]); err != want {
				t.Fatalf("kind %d cut at %d of %d: %v", k, n, len(whole), err)
			}
			bit := rng.IntN(len(head) * 8)
			whole[bit/8] ^= 1 << (bit % 8)
			if err := next(whole); !errors.Is(err, ErrCorrupt) && err != io.ErrUnexpectedEOF {
				t.Fatalf("kind %d with bit %d flipped: %v", k, bit, err)
			}
			whole[bit/8] ^= 1 << (bit % 8)
		}
	}
}

func TestLimits(t *testing.T) {
	block := make([]byte, repl.BlockBytes)
	for name, m := range map[string]Message{
		"no data":             &Write{},
		"checksum missing":    &Write{Data: block},
		"crosses an extent":   &Zero{Offset: repl.ExtentBytes - repl.BlockBytes, Length: 2 * repl.BlockBytes},
		"unaligned":           &Read{Offset: 512, Length: repl.BlockBytes},
		"negative time":       &Heartbeat{Stalled: -1},
		"huge reply":          &ReadReply{Data: make([]byte, repl.ExtentBytes+repl.BlockBytes)},
		"body too long":       &ExtList{Entries: make([]ExtEntry, MaxBodyBytes/ExtEntryBytes+1)},
		"no snapshot":         &SnapRead{Length: repl.BlockBytes},
		"sync order":          &SyncWrite{Blocks: []SyncBlock{{Block: 2}, {Block: 1}}},
		"sync without data":   &SyncWrite{Blocks: []SyncBlock{{Block: 2, Tag: Tag{1, 1}}}},
		"repair out of range": &Repair{Block: repl.ExtentBlocks},
	} {
		if _, _, err := Append(nil, m); err == nil {
			t.Errorf("%s: encoded", name)
		}
	}
	// The same limits hold against a peer: take a good message, break a length.
	head, _, _ := Append(nil, &Write{Data: block, CRC: []uint32{1}})
	for at, v := range map[int]byte{56: 0xff, 59: 0x7f, 54: 0xff} {
		b := append(bytes.Clone(head), block...)
		b[at] = v
		d := NewDecoder(bytes.NewReader(b), Heap{})
		d.SetVersion(ProtocolVersion)
		if _, err := d.Next(); err == nil {
			t.Errorf("length byte %d = %#x passed", at, v)
		}
	}
}

func TestVersions(t *testing.T) {
	head, _, _ := Append(nil, &Flush{})
	if _, err := NewDecoder(bytes.NewReader(head), Heap{}).Next(); !errors.Is(err, ErrCorrupt) {
		t.Fatalf("a request before HELLO: %v", err)
	}
	for _, c := range []struct {
		min, max, want uint8
		ok             bool
	}{{3, 3, 3, true}, {1, 9, 3, true}, {4, 9, 3, false}, {1, 2, 3, false}, {0, 0, 0, false}, {4, 1, 1, false}} {
		if v, ok := Negotiate(c.min, c.max); ok != c.ok || ok && v != c.want {
			t.Errorf("Negotiate(%d, %d) = %d, %v", c.min, c.max, v, ok)
		}
	}
}

func TestNoAllocationPerWrite(t *testing.T) {
	w := &Write{ReqID: 1, Handle: 2, Mark: repl.Mark{Epoch: 3, Wseq: 4}, Data: make([]byte, repl.BlockBytes), CRC: []uint32{7}}
	ack := &Ack{ReqID: 1, Mark: w.Mark}
	var b Batch
	out := make([]byte, 0, 1<<16)
	r := bytes.NewReader(nil)
	d := NewDecoder(r, &onePage{make([]byte, repl.BlockBytes)})
	d.SetVersion(ProtocolVersion)
	n := testing.AllocsPerRun(200, func() {
		b.Reset()
		if b.Add(w) != nil || b.Add(ack) != nil {
			t.Fatal("add")
		}
		out = b.AppendTo(out[:0])
		r.Reset(out)
		for range 2 {
			m, err := d.Next()
			if err != nil {
				t.Fatal(err)
			}
			Recycle(m)
		}
	})
	if n >= 1 {
		t.Fatalf("%v allocations a write", n)
	}
}

type onePage struct{ b []byte }

func (p *onePage) Alloc(n int) []byte { return p.b[:n] }
func (p *onePage) Free([]byte)        {}

func FuzzDecoder(f *testing.F) {
	rng := rand.New(rand.NewPCG(3, 0))
	for k := kindHello; k < kindEnd; k++ {
		head, payload, err := Append(nil, random(k, rng))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(append(head, payload...))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		// Make the checksum right, so that the fuzzer reaches what stands behind it.
		if len(b) >= HeaderBytes {
			var h header
			if h.get(b) == nil && HeaderBytes+int(h.bodyLen) <= len(b) {
				h.crc = checksum(checksum(0, b[:60]), b[HeaderBytes:][:h.bodyLen])
				h.put(b)
			}
		}
		d := NewDecoder(bytes.NewReader(b), Heap{})
		d.SetVersion(ProtocolVersion)
		for {
			complete := d.Complete()
			m, err := d.Next()
			if err == io.EOF || err == io.ErrUnexpectedEOF {
				if complete {
					t.Fatalf("%v after Complete", err)
				}
				return
			}
			if err != nil {
				return
			}
			head, payload, err := Append(nil, m)
			if err != nil {
				t.Fatalf("decoded %#v does not encode: %v", m, err)
			}
			d2 := NewDecoder(io.MultiReader(bytes.NewReader(head), bytes.NewReader(payload)), Heap{})
			d2.SetVersion(ProtocolVersion)
			m2, err := d2.Next()
			if err != nil {
				t.Fatal(err)
			}
			if s := diff(m, m2); s != "" {
				t.Fatalf("second round differs:\n%s", s)
			}
		}
	})
}
