// Package formattest reads a disk by docs/formats/disk.md and by nothing else: it
// shares no decoder, constant or type with the engine. Where it disagrees with
// the engine, one of the two, or the page, is wrong. It is for tests.
package formattest

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"slices"
)

var table = crc32.MakeTable(crc32.Castagnoli)

// Item is a line of a dump, by the names of the page.
type Item map[string]any

type bytesAt []byte

func (b bytesAt) u8(at int) uint64    { return uint64(b[at]) }
func (b bytesAt) u16(at int) uint64   { return uint64(binary.LittleEndian.Uint16(b[at:])) }
func (b bytesAt) u32(at int) uint64   { return uint64(binary.LittleEndian.Uint32(b[at:])) }
func (b bytesAt) u64(at int) uint64   { return binary.LittleEndian.Uint64(b[at:]) }
func (b bytesAt) mark(at int) Item    { return Item{"epoch": b.u64(at), "wseq": b.u64(at + 8)} }
func (b bytesAt) raw(at int) string   { return string(b[at : at+16]) }
func (b bytesAt) flag(at int) bool    { return b[at] == 1 }
func (b bytesAt) crcGood(at int) bool { return b.u32(at) == uint64(sumWithout(b, at)) }
func sum(b []byte) uint32             { return crc32.Checksum(b, table) }
func up(n int) int                    { return (n + 4095) / 4096 * 4096 }
func (b bytesAt) id(at int) string    { return id(b.raw(at)) }
func id(raw string) string {
	if raw == string(make([]byte, 16)) {
		return "" // none
	}
	return fmt.Sprintf("%x-%x-%x-%x-%x", raw[:4], raw[4:6], raw[6:8], raw[8:10], raw[10:])
}

func sumWithout(b []byte, at int) uint32 {
	c := crc32.Update(0, table, b[:at])
	c = crc32.Update(c, table, make([]byte, 4))
	return crc32.Update(c, table, b[at+4:])
}

// Disk is a disk that was read.
type Disk struct {
	Items []Item

	img     bytesAt
	sb      bytesAt
	disk    string
	blocks  int
	volumes map[uint64]string // by index
	slots   map[extent]slot
	log     []record
}

type extent struct {
	volume string // raw id
	no     uint64
	object uint64
}

type slot struct {
	no   uint64
	tags bytesAt
}

type record struct {
	typ, flags   uint64
	volume       string
	extent       uint64
	object       uint64
	slot         uint64 // of a fresh write
	block, count int
	body         bytesAt
	payload      []byte
}

// Read reads an image of a disk. Only a disk without a whole superblock is an
// error.
func Read(img []byte) (*Disk, error) {
	d := &Disk{img: img[:len(img)/4096*4096], volumes: map[uint64]string{}, slots: map[extent]slot{}}
	if err := d.superblock(); err != nil {
		return nil, err
	}
	d.table()
	d.readLog()
	d.metadata()
	return d, nil
}

func (d *Disk) add(kind string, i Item) { d.Items = append(d.Items, Item{kind: i}) }

// inOrder: the areas lie in their order inside the device.
func inOrder(s bytesAt, end uint64) bool {
	blocks, slots, image := s.u32(156), s.u64(148), 4096+uint64(up(int(8*s.u32(156))))
	if blocks < 1 || blocks > 1024 || s.u64(84) > end || slots > end || s.u64(184) > slots {
		return false
	}
	at := uint64(1 << 20)
	for _, a := range [][2]uint64{{s.u64(100), 2 * s.u64(108)}, {s.u64(116), s.u64(124)}, {s.u64(132), slots * 2 * image}, {s.u64(140), slots * blocks * 4096}} {
		if a[0] < at || a[0] > end || a[1] > end {
			return false
		}
		at = a[0] + a[1]
	}
	return at <= s.u64(84)-1<<20
}

func (d *Disk) superblock() error {
	end := len(d.img)
	var whole []bytesAt
	for _, at := range []int{0, 64 << 10, end - 1<<20, end - 1<<20 + 64<<10} {
		b := d.img[at : at+4096]
		if string(b[:8]) == "RSEAUSB1" && b.crcGood(4092) && b.u32(8) == 1 && b.u64(12)&^14 == 0 && inOrder(b, uint64(end)) {
			whole = append(whole, b)
		}
	}
	agree := func(b bytesAt) (n int) {
		for _, o := range whole {
			if bytes.Equal(o, b) {
				n++
			}
		}
		return n
	}
	for _, b := range whole {
		two, best := agree(b) >= 2, d.sb != nil && agree(d.sb) >= 2
		if d.sb == nil || two && !best || two == best && b.u64(76) > d.sb.u64(76) {
			d.sb = b
		}
	}
	if d.sb == nil {
		return errors.New("no whole superblock")
	}
	s := d.sb
	d.disk, d.blocks = s.raw(44), int(s.u32(156))
	d.add("superblock", Item{
		"version": s.u32(8), "incompat": s.u64(12), "compat": s.u64(20), "cluster": s.id(28), "disk": s.id(44), "pool": s.id(60),
		"seq": s.u64(76), "device_bytes": s.u64(84), "table_offset": s.u64(100), "table_bytes": s.u64(108), "wal_offset": s.u64(116),
		"wal_bytes": s.u64(124), "meta_offset": s.u64(132), "data_offset": s.u64(140), "slots": s.u64(148), "extent_blocks": s.u32(156),
		"state": s.u32(160), "checkpoint_lsn": s.u64(164), "checkpoint_chain": s.u32(172), "checkpoint_session": s.u64(176),
		"slot_limit": s.u64(184), "table_seq": s.u64(192), "format_time": s.u64(200), "copies": agree(s),
	})
	return nil
}

func entry(index uint64, e bytesAt) Item {
	out := any(nil)
	if n := int(e.u16(188)); n > 0 {
		var list []string
		for i := range n {
			list = append(list, e.id(190+16*i))
		}
		out = list
	}
	i := Item{
		"index": index, "volume": e.id(1), "version": e.u64(17), "cluster_generation": e.u32(25), "volume_generation": e.u32(29),
		"epoch": e.u64(33), "nonce": e.id(41), "inc": e.u32(57), "node": e.id(61), "run": e.id(77), "boot": e.id(93),
		"released": e.flag(109), "damaged": e.flag(110), "durable_mark": e.mark(111), "flush_mark": e.mark(127), "tombstone_mark": e.mark(143),
		"told_epoch": e.u64(159), "told_cfg_version": e.u32(167), "pending": e.id(171), "complete": e.flag(187), "out": out,
	}
	snaps := 190 + 16*int(e.u16(188))
	if n := e.u32(snaps); n != 0 {
		i["told_snap_seq"] = n
	}
	var list []uint64
	for k := range int(e.u16(snaps + 4)) {
		list = append(list, e.u32(snaps+6+4*k))
	}
	if list != nil {
		i["told_snaps"] = list
	}
	return i
}

func (d *Disk) table() {
	var best bytesAt
	size := int(d.sb.u64(108))
	for i := range 2 {
		b := d.img[int(d.sb.u64(100))+i*size:][:size]
		if b.u64(0) != 0x314c42545345 || b.raw(8) != d.disk {
			continue
		}
		used := up(4096 + 1024*int(b.u32(32)))
		if used <= size && b[:used].crcGood(60) && (best == nil || b.u64(24) > best.u64(24)) {
			best = b
		}
	}
	if best == nil {
		d.add("table", Item{"seq": 0, "entries": 0})
		return
	}
	n := best.u32(32)
	d.add("table", Item{"seq": best.u64(24), "entries": n})
	for i := range n {
		if e := best[4096+1024*i:][:1024]; e.flag(0) {
			d.volumes[i] = e.raw(1)
			d.add("volume", entry(i, e))
		}
	}
}

type batch struct {
	at      uint64
	head    bytesAt // header pages
	all     bytesAt // nil: a pad
	records []bytesAt
	good    bool
}

var types = []string{1: "write", "zero", "tombstone", "sync", "repair", "volume", "marks", "drop", "free"}

// batchAt reads a batch at a position of the ring; nil if there is none.
func (d *Disk) batchAt(lsn uint64) *batch {
	ring := d.img[d.sb.u64(116):][:d.sb.u64(124)]
	b := ring[lsn%uint64(len(ring)):]
	if string(b[:8]) != "RSEUWAL1" || b.raw(8) != d.disk || b.u64(24) != lsn || b.u64(32) < d.sb.u64(176) {
		return nil
	}
	size, head := int(b.u32(56)), int(b.u32(60))
	pad := b.u32(72) == 1
	if head < 4096 || head%4096 != 0 || size%4096 != 0 || head > size || size > len(b) || size > 16<<20 && !pad || !b[:head].crcGood(124) {
		return nil
	}
	f := &batch{at: lsn, head: b[:head], good: true}
	if !pad {
		f.all = b[:size]
	}
	at := 128
	for range b.u32(64) {
		if at+64 > head {
			return nil
		}
		r := b[at:head]
		end := 64 + int(r.u16(2))
		if end > len(r) || r.u8(0) < 1 || int(r.u8(0)) >= len(types) || r.u16(16)+r.u16(18) > 1024 {
			return nil
		}
		f.records = append(f.records, r[:end])
		at += end
	}
	for _, r := range f.records {
		f.good = f.good && d.payloadGood(f, r)
	}
	return f
}

// payload returns the blocks of a record, and their crcs.
func payload(f *batch, r bytesAt) (data []byte, crcs []uint32) {
	if r.u8(1) != 0 {
		return nil, nil
	}
	body := r[64:]
	switch r.u8(0) {
	case 1:
		for i := 0; i < len(body); i += 4 {
			crcs = append(crcs, uint32(body.u32(i)))
		}
	case 4, 5:
		for i := 0; i < len(body); i += 12 {
			if body.u32(i+8) != 0 {
				crcs = append(crcs, uint32(body.u32(i+4)))
			}
		}
	}
	if len(crcs) > 0 {
		data = f.all[r.u32(48):][:4096*len(crcs)]
	}
	return data, crcs
}

func (d *Disk) payloadGood(f *batch, r bytesAt) bool {
	data, crcs := payload(f, r)
	for i, c := range crcs {
		if sum(data[i*4096:][:4096]) != c {
			return false
		}
	}
	return true
}

func (d *Disk) readLog() {
	var found []*batch
	start, size := d.sb.u64(164), d.sb.u64(124)
	for lsn := start; lsn < start+size; {
		f := d.batchAt(lsn)
		if f == nil {
			lsn += 4096
			continue
		}
		found = append(found, f)
		lsn += f.head.u32(56)
	}
	expected, chain, session := start, d.sb.u32(172), d.sb.u64(176)
	for i, f := range found {
		h := f.head
		if f.at < expected || h.u64(32) < session {
			continue
		}
		inPlace := f.at == expected && h.u32(68) == chain
		if !inPlace || !f.good || !d.freshGood(found[i:]) {
			proved := slices.ContainsFunc(found[i:], func(o *batch) bool { return o.head.u64(40) > expected })
			if !proved {
				d.tail(expected, session, found[i:])
				return
			}
			if !inPlace {
				d.add("lost", Item{"from": expected, "to": max(f.at, expected+4096)})
			}
		}
		d.accept(f)
		expected, chain, session = f.at+h.u32(56), h.u32(124), h.u64(32)
	}
}

// freshGood: in a batch that no later one proves durable, the data of fresh
// records stands where they say, but for blocks that a later record changes.
func (d *Disk) freshGood(list []*batch) bool {
	f := list[0]
	end := f.at + f.head.u32(56)
	if slices.ContainsFunc(list, func(o *batch) bool { return o.head.u64(40) >= end }) {
		return true
	}
	for _, r := range f.records {
		if r.u8(0) != 1 || r.u8(1) != 4 {
			continue
		}
		for b := r.u16(16); b < r.u16(16)+r.u16(18); b++ {
			if !changedLater(list, r, b) && uint64(sum(d.inPlace(r.u32(60), b))) != r[64:].u32(int(4*(b-r.u16(16)))) {
				return false
			}
		}
	}
	return true
}

// changedLater reports whether a record behind r changes one of its blocks.
func changedLater(list []*batch, r bytesAt, block uint64) bool {
	behind := false
	for _, f := range list {
		for _, o := range f.records {
			if &o[0] == &r[0] {
				behind = true
				continue
			}
			same := o.u32(4) == r.u32(4) && o.u64(8) == r.u64(8) && o.u32(20) == r.u32(20)
			if behind && same && (o.u8(0) > 2 || block >= o.u16(16) && block < o.u16(16)+o.u16(18)) {
				return true
			}
		}
	}
	return false
}

func (d *Disk) inPlace(slot, block uint64) []byte {
	return d.img[d.sb.u64(140)+(slot*uint64(d.blocks)+block)*4096:][:4096]
}

func (d *Disk) tail(from, session uint64, list []*batch) {
	n, size := 0, uint64(0)
	for _, f := range list {
		if f.head.u64(32) >= session {
			n++
			size += f.head.u32(56)
		}
	}
	d.add("tail", Item{"from": from, "batches": n, "bytes": size})
}

func (d *Disk) accept(f *batch) {
	h := f.head
	d.add("batch", Item{"lsn": f.at, "bytes": h.u32(56), "session": h.u64(32), "durable_lsn": h.u64(40), "tail_lsn": h.u64(48),
		"flags": h.u32(72), "records": h.u32(64), "good": f.good})
	for _, r := range f.records {
		body := r[64:]
		i := Item{"type": types[r.u8(0)], "flags": r.u8(1), "index": r.u32(4), "extent": r.u64(8), "block": r.u16(16), "count": r.u16(18),
			"object": r.u32(20), "mark": r.mark(24), "image_seq": r.u64(40), "payload": r.u32(48), "orig_lsn": r.u64(52), "crc": nil, "blocks": nil}
		switch r.u8(0) {
		case 1:
			var crcs []uint64
			for k := 0; k < len(body); k += 4 {
				crcs = append(crcs, body.u32(k))
			}
			i["crc"] = crcs
		case 4, 5:
			var blocks []Item
			for k := 0; k < len(body); k += 12 {
				blocks = append(blocks, Item{"block": body.u16(k), "crc": body.u32(k + 4), "stamp": body.u32(k + 8)})
			}
			i["blocks"] = blocks
		case 6:
			i["entry"] = entry(r.u32(4), body)
			d.volumes[r.u32(4)] = body.raw(1)
		}
		if n := r.u32(60); n != 0 {
			i["slot"] = n
		}
		d.add("record", i)
		data, _ := payload(f, r)
		d.log = append(d.log, record{typ: r.u8(0), flags: r.u8(1), volume: d.volumes[r.u32(4)], extent: r.u64(8), object: r.u32(20), slot: r.u32(60),
			block: int(r.u16(16)), count: int(r.u16(18)), body: body, payload: data})
	}
}

func (d *Disk) metadata() {
	size := 4096 + up(8*d.blocks)
	for s := range d.sb.u64(184) {
		var best bytesAt
		for i := range 2 {
			b := d.img[int(d.sb.u64(132))+(2*int(s)+i)*size:][:size]
			if b.u64(0) == 0x31475441584553 && b.raw(8) == d.disk && b.u64(24) == s && b[:4096].crcGood(4092) && uint64(sum(b[4096:])) == b.u32(4088) &&
				b.u64(88)%2 == uint64(i) && (best == nil || b.u64(88) > best.u64(88)) {
				best = b
			}
		}
		if best == nil {
			continue
		}
		tags := best[4096:][:8*d.blocks]
		present, unknown := 0, 0
		for i := range d.blocks {
			switch {
			case tags.u64(8*i) == 0xffffffff:
				unknown++
			case tags.u64(8*i) != 0:
				present++
			}
		}
		state := "head"
		if best.u32(68) == 2 {
			state = "free"
		} else {
			d.slots[extent{best.raw(40), best.u64(56), best.u32(64)}] = slot{s, tags}
		}
		d.add("slot", Item{"slot": s, "state": state, "generation": best.u64(32), "volume": best.id(40), "extent": best.u64(56),
			"object": best.u32(64), "mark": best.mark(72), "seq": best.u64(88), "cut_lsn": best.u64(96),
			"present": present, "unknown": unknown, "tag_sum": sum(tags)})
	}
}

// what a block is in one object.
type kind uint8

const (
	absent kind = iota // older objects have it
	hole               // zeros
	full
	lost // it cannot be verified
)

// Block returns a block as a client reads it, who sees the objects below snap (0:
// all); good is false if it cannot be verified.
func (d *Disk) Block(volume [16]byte, no uint64, block int, snap uint64) (data []byte, good bool) {
	v := string(volume[:])
	objects := map[uint64]bool{}
	for e := range d.slots {
		objects[e.object] = objects[e.object] || e.volume == v && e.no == no
	}
	for _, r := range d.log {
		objects[r.object] = objects[r.object] || r.volume == v && r.extent == no
	}
	var list []uint64
	for o, mine := range objects {
		if mine && (snap == 0 || o < snap) {
			list = append(list, o)
		}
	}
	slices.Sort(list)
	for _, o := range slices.Backward(list) {
		switch k, data := d.inObject(extent{v, no, o}, block); k {
		case hole:
			return make([]byte, 4096), true
		case full, lost:
			return data, k == full
		}
	}
	return make([]byte, 4096), true
}

// inObject tells what one object has of a block: its slot's image, and the log on
// top of it.
func (d *Disk) inObject(e extent, block int) (k kind, data []byte) {
	s, is := d.slots[e]
	if is {
		crc, stamp := s.tags.u32(8*block), s.tags.u32(8*block+4)
		switch {
		case stamp == 0 && crc == 0xfffffffe:
			k = hole
		case stamp == 0 && crc != 0:
			k = lost
		case stamp != 0:
			data = d.inPlace(s.no, uint64(block))
			place := binary.LittleEndian.AppendUint64([]byte(e.volume), e.no*uint64(d.blocks)+uint64(block))
			k = judge(uint64(sum(data)^sum(place)) == crc)
		}
	}
	zeros := absent
	if e.object > 0 {
		zeros = hole
	}
	for _, r := range d.log {
		if r.volume != e.volume || r.extent != e.no || r.object != e.object {
			continue
		}
		if fresh := r.typ == 1 && r.flags == 4; r.flags != 0 && !fresh && (r.typ != 3 || r.flags != 1 || is) {
			continue
		}
		in := block >= r.block && block < r.block+r.count
		switch {
		case r.typ == 1 && in:
			if data = d.inPlace(r.slot, uint64(block)); r.flags == 0 {
				data = r.payload[4096*(block-r.block):][:4096]
			}
			k = judge(uint64(sum(data)) == r.body.u32(4*(block-r.block)))
		case r.typ == 2 && in, r.typ == 3:
			k = zeros
		case r.typ == 4 || r.typ == 5:
			r.synced(block, &k, &data)
		case r.typ == 9:
			k, is = absent, false
		}
	}
	return k, data
}

func judge(good bool) kind {
	if good {
		return full
	}
	return lost
}

func (r *record) synced(block int, k *kind, data *[]byte) {
	at := 0
	for i := 0; i < len(r.body); i += 12 {
		crc, stamp := r.body.u32(i+4), r.body.u32(i+8)
		if int(r.body.u16(i)) == block {
			switch {
			case stamp != 0:
				*data = r.payload[at:][:4096]
				*k = judge(uint64(sum(*data)) == crc)
			case crc == 0xfffffffe:
				*k = hole
			case crc == 0xffffffff:
				*k = lost // given up by a sync
			default:
				*k = absent
			}
		}
		if stamp != 0 {
			at += 4096
		}
	}
}
