package wire

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"

	"roseau/internal/base/errs"
	"roseau/internal/core/repl"
)

// Sizes of the encoding, in bytes. A message is header, body, payload.
const (
	HeaderBytes = 64
	// MaxBodyBytes bounds the part of a message that is not block data. Senders
	// of lists split them (Window, ExtList).
	MaxBodyBytes = 1 << 20
	// MaxPayloadBytes bounds the block data of a message; each type has a
	// smaller bound of its own, an extent at most.
	MaxPayloadBytes = 32 << 20
)

// MinVersion is the oldest protocol that this build speaks. Versions 1 and 2 were
// never released: a writer that does not know snapshots must not open a volume, and
// a replica that does not know clones forgets what hides their parent.
const MinVersion = 3

// magic opens every header: "RSW1" in memory order.
const magic = uint32('R') | uint32('S')<<8 | uint32('W')<<16 | uint32('1')<<24

// ErrCorrupt marks bytes that are no message of this protocol: a wrong magic,
// version, checksum, count or length. The connection cannot go on after it.
var ErrCorrupt = errs.New(errs.Corrupt, "decode message: bytes are not of this protocol")

func corrupt(format string, args ...any) error {
	return fmt.Errorf("decode message: "+format+": %w", append(args, ErrCorrupt)...)
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Checksum is crc32c of one block, as in Write.CRC.
func Checksum(block []byte) uint32 { return crc32.Checksum(block, castagnoli) }

// Verify reports whether crc has the checksum of every block of data.
func Verify(data []byte, crc []uint32) bool {
	if len(data) != len(crc)*repl.BlockBytes {
		return false
	}
	for i, want := range crc {
		if Checksum(data[i*repl.BlockBytes:][:repl.BlockBytes]) != want {
			return false
		}
	}
	return true
}

// kind is the message type on the wire. Numbers are never reused.
type kind uint8

const (
	kindHello kind = iota + 1
	kindHelloAck
	kindOpen
	kindOpenAck
	kindWindowReq
	kindWindow
	kindWrite
	kindZero
	kindAck
	kindFlush
	kindFlushAck
	kindRead
	kindReadReply
	kindHeartbeat
	kindHeartbeatAck
	kindConfig
	kindConfigAck
	kindExtListReq
	kindExtList
	kindExtTagsReq
	kindExtTags
	kindSyncBegin
	kindSyncWrite
	kindSyncEnd
	kindSimpleAck
	kindRepair
	kindRelease
	kindDamage
	kindSnapRead
	kindEnd // one past the last
)

// header is the fixed head of every message. Fields that a type does not use
// are zero.
type header struct {
	version    uint8
	kind       kind
	flags      uint16
	reqID      uint64
	handle     uint64
	epoch      uint64
	wseq       uint64
	offset     uint64
	length     uint32
	bodyLen    uint32
	payloadLen uint32
	crc        uint32
}

// put encodes h, with crc as it stands, into b[:HeaderBytes].
func (h *header) put(b []byte) {
	le := binary.LittleEndian
	le.PutUint32(b[0:], magic)
	b[4], b[5] = h.version, uint8(h.kind)
	le.PutUint16(b[6:], h.flags)
	le.PutUint64(b[8:], h.reqID)
	le.PutUint64(b[16:], h.handle)
	le.PutUint64(b[24:], h.epoch)
	le.PutUint64(b[32:], h.wseq)
	le.PutUint64(b[40:], h.offset)
	le.PutUint32(b[48:], h.length)
	le.PutUint32(b[52:], h.bodyLen)
	le.PutUint32(b[56:], h.payloadLen)
	le.PutUint32(b[60:], h.crc)
}

// get decodes b[:HeaderBytes] and checks what needs no body.
func (h *header) get(b []byte) error {
	le := binary.LittleEndian
	if m := le.Uint32(b[0:]); m != magic {
		return corrupt("magic %#08x", m)
	}
	h.version, h.kind = b[4], kind(b[5])
	h.flags = le.Uint16(b[6:])
	h.reqID = le.Uint64(b[8:])
	h.handle = le.Uint64(b[16:])
	h.epoch = le.Uint64(b[24:])
	h.wseq = le.Uint64(b[32:])
	h.offset = le.Uint64(b[40:])
	h.length = le.Uint32(b[48:])
	h.bodyLen = le.Uint32(b[52:])
	h.payloadLen = le.Uint32(b[56:])
	h.crc = le.Uint32(b[60:])
	switch {
	case h.kind == 0 || h.kind >= kindEnd:
		return corrupt("type %d", h.kind)
	case h.bodyLen > MaxBodyBytes:
		return corrupt("body of %d bytes, limit %d", h.bodyLen, MaxBodyBytes)
	case h.payloadLen > MaxPayloadBytes:
		return corrupt("payload of %d bytes, limit %d", h.payloadLen, MaxPayloadBytes)
	}
	return nil
}

// checksum goes on with crc over b. The header's checksum is over its first 60
// bytes and the body. Block data is covered by the block checksums in the body,
// which the receiver of the data verifies: one checksum from the guest's write
// to the disk and back.
func checksum(crc uint32, b []byte) uint32 { return crc32.Update(crc, castagnoli, b) }

// Negotiate picks the version of a connection from the peer's range.
func Negotiate(peerMin, peerMax uint8) (version uint8, ok bool) {
	v := min(peerMax, ProtocolVersion)
	return v, peerMin <= peerMax && v >= max(peerMin, MinVersion)
}

// maxDataBytes is the block data that one message may carry.
const maxDataBytes = repl.ExtentBytes
