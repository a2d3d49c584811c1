package disk

import (
	"encoding/json"
	"fmt"
	"hash/crc32"
	"io"
	"reflect"
	"strings"

	"roseau/internal/base/ids"
	"roseau/internal/block/wire"
	"roseau/internal/core/repl"
)

// Item is one line of a dump. Exactly one field is set.
type Item struct {
	Superblock *ItemSuperblock `json:"superblock,omitempty"`
	Table      *ItemTable      `json:"table,omitempty"`
	Volume     *ItemVolume     `json:"volume,omitempty"`
	Lost       *LSNRange       `json:"lost,omitempty"` // of the log, although it was durable
	Batch      *ItemBatch      `json:"batch,omitempty"`
	Record     *ItemRecord     `json:"record,omitempty"`
	Tail       *ItemTail       `json:"tail,omitempty"`
	Slot       *ItemSlot       `json:"slot,omitempty"`
	Finding    *Finding        `json:"finding,omitempty"`
}

// ItemSuperblock is the superblock in force.
type ItemSuperblock struct {
	Version         uint32 `json:"version"`
	Incompat        uint64 `json:"incompat"`
	Compat          uint64 `json:"compat"`
	Cluster         ids.ID `json:"cluster"`
	Disk            ids.ID `json:"disk"`
	Pool            ids.ID `json:"pool"`
	Seq             uint64 `json:"seq"`
	DeviceBytes     int64  `json:"device_bytes"`
	TableOffset     int64  `json:"table_offset"`
	TableBytes      int64  `json:"table_bytes"`
	WALOffset       int64  `json:"wal_offset"`
	WALBytes        int64  `json:"wal_bytes"`
	MetaOffset      int64  `json:"meta_offset"`
	DataOffset      int64  `json:"data_offset"`
	Slots           uint64 `json:"slots"`
	ExtentBlocks    uint32 `json:"extent_blocks"`
	State           uint32 `json:"state"`
	CheckpointLSN   uint64 `json:"checkpoint_lsn"`
	CheckpointChain uint32 `json:"checkpoint_chain"`
	CheckpointSess  uint64 `json:"checkpoint_session"`
	SlotLimit       uint64 `json:"slot_limit"`
	TableSeq        uint64 `json:"table_seq"`
	FormatTime      int64  `json:"format_time"`
	Copies          int    `json:"copies"` // whole ones that say the same
}

// ItemTable is the volume table in force; its entries follow as volumes.
type ItemTable struct {
	Seq     uint64 `json:"seq"`
	Entries int    `json:"entries"`
}

// ItemVolume is an entry of the volume table, or of a volume record of the log.
type ItemVolume struct {
	Index      uint32    `json:"index"`
	Volume     ids.ID    `json:"volume"`
	Version    uint64    `json:"version"`
	Cluster    uint32    `json:"cluster_generation"`
	Generation uint32    `json:"volume_generation"`
	Epoch      uint64    `json:"epoch"`
	Nonce      ids.ID    `json:"nonce"`
	Inc        uint32    `json:"inc"`
	Node       ids.ID    `json:"node"`
	Run        ids.ID    `json:"run"`
	Boot       ids.ID    `json:"boot"`
	Released   bool      `json:"released"`
	Damaged    bool      `json:"damaged"`
	Durable    repl.Mark `json:"durable_mark"`
	Flush      repl.Mark `json:"flush_mark"`
	Tombstones repl.Mark `json:"tombstone_mark"`
	ToldEpoch  uint64    `json:"told_epoch"`
	ToldCfg    uint32    `json:"told_cfg_version"`
	Pending    ids.ID    `json:"pending"`
	Complete   bool      `json:"complete"`
	Out        []ids.ID  `json:"out"`
	SnapSeq    uint32    `json:"told_snap_seq,omitempty"`
	Snaps      []uint32  `json:"told_snaps,omitempty"`
}

// ItemBatch is a batch of the log; its records follow.
type ItemBatch struct {
	LSN        uint64 `json:"lsn"`
	Bytes      uint32 `json:"bytes"`
	Session    uint64 `json:"session"`
	DurableLSN uint64 `json:"durable_lsn"`
	TailLSN    uint64 `json:"tail_lsn"`
	Flags      uint32 `json:"flags"`
	Records    uint32 `json:"records"`
	Good       bool   `json:"good"` // the payload matches
}

// ItemRecord is a record of the log.
type ItemRecord struct {
	Type     string      `json:"type"`
	Flags    uint8       `json:"flags"`
	Index    uint32      `json:"index"` // of the volume
	Extent   uint64      `json:"extent"`
	Block    uint16      `json:"block"`
	Count    uint16      `json:"count"`
	Object   uint32      `json:"object"`
	Mark     repl.Mark   `json:"mark"`
	ImageSeq uint64      `json:"image_seq"`
	Payload  uint32      `json:"payload"`
	OrigLSN  uint64      `json:"orig_lsn"`
	CRC      []uint32    `json:"crc"`
	Blocks   []ItemBlock `json:"blocks"`
	Slot     uint32      `json:"slot,omitempty"` // of a fresh record
	Volume   *ItemVolume `json:"entry,omitempty"`
}

// ItemBlock is a block of a sync or repair record.
type ItemBlock struct {
	Block uint16 `json:"block"`
	CRC   uint32 `json:"crc"`
	Stamp uint32 `json:"stamp"`
}

// ItemTail is what follows the end of the log and does not count.
type ItemTail struct {
	From    uint64 `json:"from"`
	Batches int    `json:"batches"`
	Bytes   int64  `json:"bytes"`
}

// ItemSlot is the image in force of a slot, with its present blocks.
type ItemSlot struct {
	Slot       uint64    `json:"slot"`
	State      string    `json:"state"` // head or free
	Generation uint64    `json:"generation"`
	Volume     ids.ID    `json:"volume"`
	Extent     uint64    `json:"extent"`
	Object     uint32    `json:"object"`
	Mark       repl.Mark `json:"mark"`
	Seq        uint64    `json:"seq"`
	CutLSN     uint64    `json:"cut_lsn"`
	Present    int       `json:"present"` // blocks with data
	Unknown    int       `json:"unknown"` // blocks whose tag was lost
	TagSum     uint32    `json:"tag_sum"` // crc32c of the tags as they stand
}

// Severity says what a finding means for the data.
type Severity string

// The severities.
const (
	Note    Severity = "note"    // legal; good to know
	Warning Severity = "warning" // something that keeps a second copy is broken: nothing is lost
	Damage  Severity = "damage"  // data or metadata of this copy is lost or wrong
)

// Finding is what a check has found.
type Finding struct {
	Severity Severity `json:"severity"`
	Where    string   `json:"where"`
	What     string   `json:"what"`
	Remedy   string   `json:"remedy"`
}

// String returns one line for people.
func (f Finding) String() string {
	return fmt.Sprintf("%s: %s: %s; %s", f.Severity, f.Where, f.What, f.Remedy)
}

func itemSuperblock(s *Superblock, copies int) *ItemSuperblock {
	return &ItemSuperblock{
		Version: s.Version, Incompat: s.Incompat, Compat: s.Compat, Cluster: s.Identity.Cluster, Disk: s.Identity.Disk, Pool: s.Identity.Pool,
		Seq: s.Seq, DeviceBytes: s.DeviceBytes, TableOffset: s.TableOffset, TableBytes: s.TableBytes, WALOffset: s.WALOffset, WALBytes: s.WALBytes,
		MetaOffset: s.MetaOffset, DataOffset: s.DataOffset, Slots: s.Slots, ExtentBlocks: s.ExtentBlocks, State: uint32(s.State),
		CheckpointLSN: s.CheckpointLSN, CheckpointChain: s.CheckpointChain, CheckpointSess: s.CheckpointSess, SlotLimit: s.SlotLimit,
		TableSeq: s.TableSeq, FormatTime: s.UnixTime, Copies: copies,
	}
}

func itemVolume(index uint32, v *volumeEntry) *ItemVolume {
	return &ItemVolume{
		Index: index, Volume: v.Volume, Version: v.Version, Cluster: v.Promise.Generation.Cluster, Generation: v.Promise.Generation.Volume,
		Epoch: v.Promise.Epoch, Nonce: v.Promise.Nonce, Inc: v.Promise.Inc, Node: v.Promise.Node, Run: v.Promise.Run, Boot: v.Boot,
		Released: v.Released, Damaged: v.Damaged, Durable: v.Durable, Flush: v.Flush, Tombstones: v.TombForget,
		ToldEpoch: v.Told.Epoch, ToldCfg: v.Told.CfgVersion, Pending: v.Told.Pending, Complete: v.Told.Complete, Out: v.Told.Out, SnapSeq: v.Told.SnapSeq, Snaps: v.Told.Snaps,
	}
}

func itemRecord(d *descriptor) *ItemRecord {
	r := &ItemRecord{
		Type: recordNames[d.Type], Flags: d.Flags, Index: d.Index, Extent: d.Extent, Block: d.Block, Count: d.Count, Object: d.Object,
		Mark: d.Mark, ImageSeq: d.ImageSeq, Payload: d.Payload, OrigLSN: d.OrigLSN, CRC: d.CRC, Slot: d.Slot,
	}
	for _, b := range d.Blocks {
		r.Blocks = append(r.Blocks, ItemBlock{b.Block, b.Tag.CRC, b.Tag.Stamp})
	}
	if d.Type == recVolume {
		if v, ok := decodeVolumeEntry(d.Body); ok {
			r.Volume = itemVolume(d.Index, &v)
		}
	}
	return r
}

func itemSlot(h *imageHeader, img []byte, extentBlocks int) *ItemSlot {
	s := &ItemSlot{
		Slot: h.Slot, State: "head", Generation: h.Generation, Volume: h.Volume, Extent: h.Extent, Object: h.Object,
		Mark: h.Mark, Seq: h.Seq, CutLSN: h.CutLSN,
	}
	if h.State == imageStateFree {
		s.State = "free"
	}
	vcrc := volumeCRC(h.Volume)
	for i := range extentBlocks {
		switch t := tagAt(img, vcrc, extentBlocks, h.Extent, i); {
		case t == unknownTag:
			s.Unknown++
		case t != (wire.Tag{}):
			s.Present++
		}
	}
	s.TagSum = crc32.Checksum(img[imageHeaderBytes:imageHeaderBytes+extentBlocks*tagBytes], castagnoli)
	return s
}

// WriteText writes an item as one line for people: its kind and its fields.
func (i Item) WriteText(w io.Writer) error {
	v := reflect.ValueOf(i)
	for k := range v.NumField() {
		if v.Field(k).IsNil() {
			continue
		}
		name, _, _ := strings.Cut(v.Type().Field(k).Tag.Get("json"), ",")
		line := name + textFields(v.Field(k).Elem())
		if i.Record != nil {
			line = "  " + line
		}
		_, err := fmt.Fprintln(w, line)
		return err
	}
	return nil
}

func textFields(v reflect.Value) string {
	var b strings.Builder
	for k := range v.NumField() {
		f := v.Field(k)
		if f.IsZero() && k > 0 {
			continue // absent means zero
		}
		name, _, _ := strings.Cut(v.Type().Field(k).Tag.Get("json"), ",")
		if name == "" {
			name = strings.ToLower(v.Type().Field(k).Name)
		}
		switch x := f.Interface().(type) {
		case repl.Mark:
			fmt.Fprintf(&b, " %s=%d/%d", name, x.Epoch, x.Wseq)
		case *ItemVolume:
			fmt.Fprintf(&b, " %s={%s }", name, textFields(f.Elem()))
		case string:
			fmt.Fprintf(&b, " %s=%q", name, x)
		default:
			fmt.Fprintf(&b, " %s=%v", name, x)
		}
	}
	return b.String()
}

// WriteJSON writes an item as one line of JSON.
func (i Item) WriteJSON(w io.Writer) error { return json.NewEncoder(w).Encode(i) }
