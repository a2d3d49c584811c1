// Package probe has what the drill and the guest that it starts agree on: the
// guest's configuration, the self-describing blocks that it writes, and the
// bodies of its little HTTP interface. The guest's program is
// cmd/roseau-probe.
//
// Layout of the guest's disk: a bootable image of ImageBytes, with the
// configuration at ConfigOffset (between boot loader and first partition), then
// the log region (self-describing blocks), then the fill region (random data
// that can be computed again).
package probe

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"hash/crc32"
	"net/netip"
	"time"

	"roseau/internal/base/errs"
)

// The layout, in bytes.
const (
	BlockBytes   = 4096
	ConfigOffset = 512 << 10
	ConfigBytes  = 4096
	ImageBytes   = 64 << 20
	LogOffset    = ImageBytes
	LogBlocks    = 8192 // 32 MiB
	FillOffset   = LogOffset + LogBlocks*BlockBytes
	fillChunk    = 1 << 20
)

// HTTPPort is where the guest serves its page; AckPort is where a recorder
// connects to be told of each flushed write.
const (
	HTTPPort = 80
	AckPort  = 7000
)

// Config tells the guest who it is.
type Config struct {
	Name    string       `json:"name"`
	Address netip.Prefix `json:"address"` // of its first network interface
	Gateway netip.Addr   `json:"gateway"`
	Seed    uint64       `json:"seed"` // of the fill data and of the log's identity
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

var configMagic = []byte("ROSEAU-PROBE-1\n\x00")

// EncodeConfig returns the ConfigBytes that stand at ConfigOffset.
func EncodeConfig(c Config) ([]byte, error) {
	body, err := json.Marshal(c)
	if err != nil {
		return nil, err
	}
	if len(body) > ConfigBytes-len(configMagic)-8 {
		return nil, errs.New(errs.Invalid, "encode probe config: %d bytes do not fit", len(body))
	}
	b := make([]byte, ConfigBytes)
	n := copy(b, configMagic)
	binary.LittleEndian.PutUint32(b[n:], uint32(len(body)))
	binary.LittleEndian.PutUint32(b[n+4:], crc32.Checksum(body, castagnoli))
	copy(b[n+8:], body)
	return b, nil
}

// DecodeConfig reads what EncodeConfig wrote.
func DecodeConfig(b []byte) (Config, error) {
	var c Config
	n := len(configMagic)
	if len(b) < n+8 || !bytes.Equal(b[:n], configMagic) {
		return c, errs.New(errs.Corrupt, "decode probe config: no magic")
	}
	size := binary.LittleEndian.Uint32(b[n:])
	if uint64(size) > uint64(len(b)-n-8) {
		return c, errs.New(errs.Corrupt, "decode probe config: length %d", size)
	}
	body := b[n+8:][:size]
	if crc32.Checksum(body, castagnoli) != binary.LittleEndian.Uint32(b[n+4:]) {
		return c, errs.New(errs.Corrupt, "decode probe config: checksum")
	}
	if err := json.Unmarshal(body, &c); err != nil {
		return c, errs.New(errs.Corrupt, "decode probe config: %w", err)
	}
	return c, nil
}

var blockMagic = [8]byte{'R', 'S', 'P', 'R', 'O', 'B', 'E', '1'}

// EncodeBlock fills b (BlockBytes) with the block that write number seq puts
// into the given slot of the log region, by the guest of the given boot (of which
// the last 16 digits count, hexadecimal). Every byte depends on (seed, seq, slot,
// boot), so a torn or foreign block does not pass DecodeBlock.
func EncodeBlock(b []byte, seed, seq uint64, slot uint32, boot uint64) {
	copy(b, blockMagic[:])
	binary.LittleEndian.PutUint64(b[8:], seed)
	binary.LittleEndian.PutUint64(b[16:], seq)
	binary.LittleEndian.PutUint32(b[24:], slot)
	binary.LittleEndian.PutUint64(b[32:], boot)
	Fill(b[40:BlockBytes], seed^seq*0x9e3779b97f4a7c15^uint64(slot)^boot)
	binary.LittleEndian.PutUint32(b[28:], blockSum(b))
}

func blockSum(b []byte) uint32 {
	return crc32.Update(crc32.Checksum(b[:28], castagnoli), castagnoli, b[32:BlockBytes])
}

// DecodeBlock returns the sequence number of the block in the given slot and the
// boot that wrote it: 0 for a block of zeros (never written), an error for
// anything that is not exactly a block written there.
func DecodeBlock(b []byte, seed uint64, slot uint32) (seq, boot uint64, err error) {
	if !bytes.Equal(b[:8], blockMagic[:]) {
		for _, c := range b[:BlockBytes] {
			if c != 0 {
				return 0, 0, errs.New(errs.Corrupt, "log slot %d: not a probe block", slot)
			}
		}
		return 0, 0, nil
	}
	seq = binary.LittleEndian.Uint64(b[16:])
	switch {
	case blockSum(b) != binary.LittleEndian.Uint32(b[28:]):
		return 0, 0, errs.New(errs.Corrupt, "log slot %d: checksum of write %d", slot, seq)
	case binary.LittleEndian.Uint64(b[8:]) != seed:
		return 0, 0, errs.New(errs.Corrupt, "log slot %d: block of another run", slot)
	case binary.LittleEndian.Uint32(b[24:]) != slot:
		return 0, 0, errs.New(errs.Corrupt, "log slot %d: holds the block of slot %d", slot, binary.LittleEndian.Uint32(b[24:]))
	}
	return seq, binary.LittleEndian.Uint64(b[32:]), nil
}

// PeekSeq is the sequence number that a block names, unchecked; 0: it is no block
// of this seed.
func PeekSeq(b []byte, seed uint64) uint64 {
	if !bytes.Equal(b[:8], blockMagic[:]) || binary.LittleEndian.Uint64(b[8:]) != seed {
		return 0
	}
	return binary.LittleEndian.Uint64(b[16:])
}

// Slot is where write number seq goes: a full-period walk over the slots, so
// that neighbours in time are not neighbours on disk.
func Slot(seq uint64) uint32 { return uint32(seq * 2654435761 % LogBlocks) }

// Fill writes a xorshift64* stream over b: incompressible, and the same
// everywhere for the same state.
// Source: S. Vigna, "An experimental exploration of Marsaglia's xorshift
// generators, scrambled" (2014).
func Fill(b []byte, state uint64) {
	if state == 0 {
		state = 0x9e3779b97f4a7c15
	}
	for len(b) >= 8 {
		state ^= state >> 12
		state ^= state << 25
		state ^= state >> 27
		binary.LittleEndian.PutUint64(b, state*0x2545f4914f6cdd1d)
		b = b[8:]
	}
	for i := range b {
		b[i] = byte(state >> (8 * i))
	}
}

// FillFirst is the first word that Fill writes for a state, little endian.
func FillFirst(state uint64) uint64 {
	var b [8]byte
	Fill(b[:], state)
	return binary.LittleEndian.Uint64(b[:])
}

// FillChunkBytes is the unit of the fill region.
const FillChunkBytes = fillChunk

// FillChunk fills b (FillChunkBytes) with the content of chunk number n.
func FillChunk(b []byte, seed uint64, n int) {
	Fill(b[:fillChunk], seed*0x9e3779b97f4a7c15+uint64(n)+1)
}

// Status is the body of GET /status.
type Status struct {
	Name        string        `json:"name"`
	Boot        string        `json:"boot"`      // 16 hexadecimal digits, random, new at each boot: a guest that rebooted is not the one that moved
	Uptime      time.Duration `json:"uptime_ns"` // the guest's own
	MemoryRound uint64        `json:"memory_rounds"`
	MemoryBad   uint64        `json:"memory_bad"`   // words of the memory pattern that were not what was written
	GuestGap    time.Duration `json:"guest_gap_ns"` // longest step between two ticks since the last POST /reset
	Seq         uint64        `json:"seq"`          // last write begun
	Flushed     uint64        `json:"flushed"`      // last write whose flush was acknowledged by the disk
	// First is the first write of this boot: above every number that stood on the
	// disk when its load began. 0: it wrote none.
	First       uint64        `json:"first"`
	LongestIO   time.Duration `json:"longest_io_ns"` // longest write+flush since the last POST /reset
	IOErrors    uint64        `json:"io_errors"`
	LastError   string        `json:"last_error,omitempty"`
	Load        bool          `json:"load"`      // the write load is on
	FillDone    int           `json:"fill_done"` // chunks written, or verified
	FillTotal   int           `json:"fill_total"`
	FillBad     int           `json:"fill_bad"` // chunks that did not verify
	FillRunning bool          `json:"fill_running"`
	Pressed     uint64        `json:"pressed"`           // how often its power button was pressed
	DirtyRate   uint64        `json:"dirty_bytes_per_s"` // of memory by POST /dirty, in the last second; 0: none, or not settled yet
}

// Ack is one line on AckPort, as text: the write's number.
func Ack(seq uint64) string { return fmt.Sprintf("%d\n", seq) }
