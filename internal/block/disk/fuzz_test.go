package disk

import (
	"bytes"
	"testing"

	"roseau/internal/base/ids"
	"roseau/internal/block/wire"
	"roseau/internal/core/repl"
)

// The decoders must stand any bytes; and with a good checksum what they accept
// must encode to what they read.

func FuzzSuperblock(f *testing.F) {
	s, err := plan(Identity{Disk: ids.ID{1}}, Geometry{DeviceBytes: 32 << 20, WALBytes: 1 << 20, ExtentBlocks: 16})
	if err != nil {
		f.Fatal(err)
	}
	b := make([]byte, superblockBytes)
	s.encode(b)
	f.Add(b)
	f.Fuzz(func(t *testing.T, in []byte) {
		in = append([]byte(nil), in...)
		if len(in) >= superblockBytes {
			putCRC(in[:superblockBytes], superblockCRC)
		}
		s, err := decodeSuperblock(in)
		if err != nil {
			return
		}
		out := make([]byte, superblockBytes)
		s.encode(out)
		if again, err := decodeSuperblock(out); err != nil || again != s {
			t.Fatalf("%+v, %v", again, err)
		}
	})
}

func FuzzBatch(f *testing.F) {
	b := make([]byte, 2*BlockBytes)
	e := enc{b: b, off: batchHeaderBytes}
	list := []descriptor{
		{Type: recWrite, Extent: 3, Block: 1, Count: 1, Mark: repl.Mark{Epoch: 1, Wseq: 2}, Payload: BlockBytes, CRC: []uint32{7}},
		{Type: recSync, Extent: 3, Blocks: []wire.SyncBlock{{Block: 4, Tag: wire.Tag{CRC: 1, Stamp: 1}}}, Payload: BlockBytes},
		{Type: recMarks, Body: make([]byte, 32)},
	}
	for i := range list {
		list[i].encode(&e)
	}
	h := batchHeader{Bytes: 2 * BlockBytes, HeaderBytes: BlockBytes, Records: uint32(len(list))}
	h.encode(b)
	f.Add(b)
	f.Fuzz(func(t *testing.T, in []byte) {
		in = append([]byte(nil), in...)
		h, ok := decodeBatchHeader(in)
		if !ok || len(in) < int(h.HeaderBytes) {
			return
		}
		h.CRC = putCRC(in[:h.HeaderBytes], batchCRCOffset)
		list, err := decodeDescriptors(h, in)
		if err != nil {
			return
		}
		if len(in) >= int(h.Bytes) {
			payloadGood(list, in[:h.Bytes])
		}
		for i := range list {
			var buf [1 << 17]byte
			e := enc{b: buf[:]}
			list[i].encode(&e)
			var again descriptor
			d := dec{b: buf[:e.off]}
			if !again.decode(&d) {
				t.Fatalf("descriptor %+v does not decode again", list[i])
			}
		}
	})
}

func FuzzImage(f *testing.F) {
	b := make([]byte, imageBytes(16))
	h := imageHeader{Disk: ids.ID{1}, State: imageStateHead, Seq: 3}
	setTag(b, 5, 16, 2, 3, wire.Tag{CRC: 1, Stamp: 2})
	h.encode(b)
	f.Add(b)
	f.Fuzz(func(t *testing.T, in []byte) {
		h, blank, _, err := decodeImage(in)
		if err != nil || blank {
			return
		}
		out := append([]byte(nil), in...)
		h.encode(out)
		if again, _, _, err := decodeImage(out); err != nil || again != h {
			t.Fatalf("%+v, %v", again, err)
		}
	})
}

func FuzzTable(f *testing.F) {
	t := tableImage{Seq: 4, Entries: []*volumeEntry{nil, {Volume: ids.ID{1}, Told: wire.Told{Out: []ids.ID{{2}}}}}}
	b := make([]byte, tableUsedBytes(2))
	t.encode(ids.ID{9}, b)
	f.Add(b)
	f.Fuzz(func(t *testing.T, in []byte) {
		in = append([]byte(nil), in...)
		d := dec{b: in, off: 32}
		if n := tableUsedBytes(int(d.u32())); n <= int64(len(in)) {
			putCRC(in[:n], tableCRCOffset)
		}
		table, err := decodeTable(ids.ID{9}, in)
		if err != nil {
			return
		}
		out := make([]byte, tableUsedBytes(len(table.Entries)))
		table.encode(ids.ID{9}, out)
		again, err := decodeTable(ids.ID{9}, out)
		if err != nil || len(again.Entries) != len(table.Entries) {
			t.Fatal(err)
		}
		for i, v := range table.Entries {
			var a, b [volumeEntryBytes]byte
			if (v == nil) != (again.Entries[i] == nil) {
				t.Fatal("entry lost")
			}
			if v != nil {
				v.encode(a[:])
				again.Entries[i].encode(b[:])
				if !bytes.Equal(a[:], b[:]) {
					t.Fatal("entry changed")
				}
			}
		}
	})
}
