// Package records reads the records below /s/ and /r/ that services share: who
// may write a volume, where its copies are, where a VM is placed, and what the
// guards report. It changes nothing and decides nothing; the writers' own
// transactions are in block/volume.
//
//	/s/vol/<id>/{own,cfg,seg}   package core/repl
//	/s/vol/<id>/clones          repl.Clones
//	/s/vm/<id>/placement        repl.Placement
//	/s/disk/<id>                Disk
//	/s/tomb/<id>                Tomb, for ever: identities are not used again
//	/s/vm-tomb/<id>             VMTomb, for ever
//	/r/vm/<vm>/<node>           Report of a guard, written by its node's daemon
//	/r/scrub/pool/<id>          PoolScrub
//	/r/scrub/volume/<id>        VolumeScrub
package records

import (
	"context"
	"encoding/json"
	"slices"
	"strings"
	"time"

	"roseau/internal/base/errs"
	"roseau/internal/base/ids"
	"roseau/internal/core/repl"
	"roseau/internal/driver/guardctl"
	"roseau/internal/model"
	"roseau/internal/store"
)

// Prefixes of the keys.
const (
	VolumePrefix = "/s/vol/"
	VMPrefix     = "/s/vm/"
	DiskPrefix   = "/s/disk/"
	TombPrefix   = "/s/tomb/"
	VMTombPrefix = "/s/vm-tomb/"
	ReportPrefix = "/r/vm/"

	PoolScrubPrefix   = "/r/scrub/pool/"
	VolumeScrubPrefix = "/r/scrub/volume/"
)

// OwnKey, CfgKey and SegKey are the records of a volume.
func OwnKey(vol ids.ID) string { return repl.Key{Kind: repl.KeyOwn, ID: vol}.Path() }

// CfgKey is the configuration of a volume.
func CfgKey(vol ids.ID) string { return repl.Key{Kind: repl.KeyCfg, ID: vol}.Path() }

// SegKey is the placement of a volume's segments.
func SegKey(vol ids.ID) string { return repl.Key{Kind: repl.KeySeg, ID: vol}.Path() }

// ClonesKey lists the clones that read a volume's snapshots.
func ClonesKey(vol ids.ID) string { return repl.Key{Kind: repl.KeyClones, ID: vol}.Path() }

// PlacementKey says where a VM may run.
func PlacementKey(vm ids.ID) string { return repl.Key{Kind: repl.KeyPlacement, ID: vm}.Path() }

// DiskKey is the record of a claimed disk, kept as long as a volume names it.
func DiskKey(disk ids.ID) string { return DiskPrefix + disk.String() }

// TombKey is the record of a deleted volume.
func TombKey(vol ids.ID) string { return TombPrefix + vol.String() }

// VMTombKey is the record of a deleted VM.
func VMTombKey(vm ids.ID) string { return VMTombPrefix + vm.String() }

// ReportKey is what node's daemon says of the guard of vm there.
func ReportKey(vm, node ids.ID) string { return ReportPrefix + vm.String() + "/" + node.String() }

// Disk is /s/disk/<id>.
type Disk struct {
	Node        ids.ID `json:"node"`
	SizeBytes   int64  `json:"size_bytes"`
	State       string `json:"state"` // active | draining | retired
	FaultDomain string `json:"fault_domain,omitempty"`
}

// Tomb is /s/tomb/<id>. Replicas free a volume's extents only on reading it;
// Freed lists the disks that did.
type Tomb struct {
	Volume  ids.ID    `json:"volume"`
	State   string    `json:"state"` // deleting
	Pool    ids.ID    `json:"pool"`
	Disks   []ids.ID  `json:"disks"`
	Freed   []ids.ID  `json:"freed,omitempty"`
	Deleted time.Time `json:"deleted"`
}

// VMTomb is /s/vm-tomb/<id>. A node ends a guard of a VM that it cannot find on
// reading it, never because the VM's object is missing.
type VMTomb struct {
	Name    string    `json:"name"`
	Deleted time.Time `json:"deleted"`
}

// Report is what a node says of the guard of a VM: Status, or Absent.
type Report struct {
	Absent bool            `json:"absent,omitempty"`
	Why    string          `json:"why,omitempty"` // of Absent
	Status guardctl.Status `json:"status"`
	// MigrationOver is the attempt of a migration that ended, or never began,
	// without moving the VM; 0: none. MigrationError says why.
	MigrationOver  uint64 `json:"migration_over,omitempty"`
	MigrationError string `json:"migration_error,omitempty"`
}

// Volumes reads all volume records.
func Volumes(ctx context.Context, s *store.Store) (map[ids.ID]*repl.VolumeRecord, error) {
	recs, err := store.ListRecords[json.RawMessage](ctx, s, VolumePrefix)
	if err != nil {
		return nil, err
	}
	out := map[ids.ID]*repl.VolumeRecord{}
	for key, r := range recs {
		if err := addVolumeKey(out, key, r.Value, r.Revision); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// Volume reads the records of one volume; NotFound if it has none.
func Volume(ctx context.Context, s *store.Store, vol ids.ID) (*repl.VolumeRecord, error) {
	recs, err := store.ListRecords[json.RawMessage](ctx, s, VolumePrefix+vol.String()+"/")
	if err != nil {
		return nil, err
	}
	out := map[ids.ID]*repl.VolumeRecord{}
	for key, r := range recs {
		if err := addVolumeKey(out, key, r.Value, r.Revision); err != nil {
			return nil, err
		}
	}
	if out[vol] == nil || out[vol].OwnRev == 0 || out[vol].CfgRev == 0 || out[vol].SegRev == 0 {
		return nil, errs.New(errs.NotFound, "read volume %s: it has no records", vol)
	}
	return out[vol], nil
}

func addVolumeKey(out map[ids.ID]*repl.VolumeRecord, key string, data []byte, rev int64) error {
	idText, what, ok := strings.Cut(strings.TrimPrefix(key, VolumePrefix), "/")
	id, err := ids.Parse(idText)
	if !ok || err != nil || !slices.Contains([]string{"own", "cfg", "seg"}, what) {
		return nil // another kind of record, or another version's
	}
	v := out[id]
	if v == nil {
		v = &repl.VolumeRecord{ID: id}
		out[id] = v
	}
	switch what {
	case "own":
		v.OwnRev, err = rev, json.Unmarshal(data, &v.Own)
	case "cfg":
		v.CfgRev, err = rev, json.Unmarshal(data, &v.Cfg)
	case "seg":
		v.SegRev, err = rev, json.Unmarshal(data, &v.Seg)
		if err == nil {
			err = v.Seg.Check()
		}
	}
	if err != nil {
		return errs.New(errs.Corrupt, "decode record %s: %w", key, err)
	}
	return nil
}

// Placement reads where a VM is placed; one that was never placed has the zero
// value at revision 0.
func Placement(ctx context.Context, s *store.Store, vm ids.ID) (store.Record[repl.Placement], error) {
	return store.GetRecord[repl.Placement](ctx, s, PlacementKey(vm))
}

// Reports reads the reports of all nodes on a VM.
func Reports(ctx context.Context, s *store.Store, vm ids.ID) (map[ids.ID]Report, error) {
	prefix := ReportPrefix + vm.String() + "/"
	recs, err := store.ListRecords[Report](ctx, s, prefix)
	if err != nil {
		return nil, err
	}
	out := map[ids.ID]Report{}
	for key, r := range recs {
		if node, err := ids.Parse(strings.TrimPrefix(key, prefix)); err == nil {
			out[node] = r.Value
		}
	}
	return out, nil
}

// Names tells the names of disks and nodes to messages.
type Names struct {
	Disk     map[ids.ID]string
	DiskNode map[ids.ID]ids.ID
	Node     map[ids.ID]string
}

// NewNames indexes disks and nodes.
func NewNames(disks []*model.Disk, nodes []*model.Node) Names {
	n := Names{Disk: map[ids.ID]string{}, DiskNode: map[ids.ID]ids.ID{}, Node: map[ids.ID]string{}}
	for _, d := range disks {
		n.Disk[d.ID], n.DiskNode[d.ID] = d.Name, d.Spec.Node
	}
	for _, x := range nodes {
		n.Node[x.ID] = x.Name
	}
	return n
}

// DiskName returns the name of a disk, or the head of its id.
func (n Names) DiskName(id ids.ID) string {
	if s := n.Disk[id]; s != "" {
		return s
	}
	return "disk " + id.Short()
}

// NodeName returns the name of a node, or the head of its id.
func (n Names) NodeName(id ids.ID) string {
	if s := n.Node[id]; s != "" {
		return s
	}
	return "node " + id.Short()
}

// Health computes the status of a volume from its records: copies in sync in the
// worst segment, and the disks that are outside with their reasons. A disk that
// is not in up counts as away only for Waiting: the in-sync set is what etcd
// says. up nil: not known, nothing waits.
func Health(v *repl.VolumeRecord, names Names, up map[ids.ID]bool) model.VolumeStatus {
	st := model.VolumeStatus{Epoch: v.Own.Epoch, Health: model.Healthy, Copies: v.Cfg.Copies}
	if !v.Own.Node.IsZero() {
		st.Writer = names.NodeName(v.Own.Node) + ", " + string(v.Own.Purpose)
	}
	waiting := false
	for s, row := range v.Seg.Map {
		in, reach := 0, 0
		for _, i := range row {
			if int(i) >= len(v.Seg.Disks) {
				continue
			}
			disk := v.Seg.Disks[i]
			if !v.OutOf(disk, s) {
				in++
				if up == nil || up[disk] {
					reach++
				}
			}
		}
		st.Copies = min(st.Copies, in)
		waiting = waiting || reach == 0
	}
	for disk, o := range v.Own.Out {
		text := names.DiskName(disk)
		if o.Reason != "" {
			text += ": " + string(o.Reason)
		}
		st.Out = append(st.Out, text)
	}
	slices.Sort(st.Out)
	if n := v.Cfg.Snap.Find(v.Cfg.Rollback); n != nil {
		st.RollingBack = n.Name
	}
	switch {
	case waiting:
		st.Health = model.Waiting
	case st.Copies >= v.Cfg.Copies:
	case st.Copies == 1 && v.Cfg.Copies > 1:
		st.Health = model.HealthOne
	case st.Copies < v.Cfg.Copies:
		st.Health = model.Degraded
	}
	return st
}

// Groups returns, for each distinct set of disks that holds segments of the
// volume, the nodes with an in-sync copy, in the order of first use.
func Groups(v *repl.VolumeRecord, names Names) [][]ids.ID {
	var out [][]ids.ID
	seen := map[string]bool{}
	for s, row := range v.Seg.Map {
		var nodes []ids.ID
		key := ""
		for _, i := range row {
			if int(i) >= len(v.Seg.Disks) {
				continue
			}
			disk := v.Seg.Disks[i]
			if v.OutOf(disk, s) {
				continue
			}
			key += disk.String()
			nodes = append(nodes, names.DiskNode[disk])
		}
		if !seen[key] {
			seen[key] = true
			out = append(out, nodes)
		}
	}
	return out
}
