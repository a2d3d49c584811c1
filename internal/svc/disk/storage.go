package disk

import (
	"context"
	"encoding/json"

	"roseau/internal/base/ids"
	"roseau/internal/base/size"
	"roseau/internal/driver/storagectl"
)

// process is the storage process of this node behind its control socket.
type process struct{ c *storagectl.Client }

// NewStorage returns the Storage of the node whose control socket c speaks to.
func NewStorage(c *storagectl.Client) Storage { return process{c} }

func deviceOf(d storagectl.Device) Device {
	return Device{Path: d.Path, Model: d.Model, Serial: d.Serial, Size: d.Size, State: d.State, Content: d.Content,
		ID: d.ID, Data: d.Data, Used: d.Used, Errors: d.Errors, Reason: d.Reason}
}

// Claimed lists the claimed disks with their use.
func (p process) Claimed(ctx context.Context) ([]Device, error) {
	st, err := p.c.Status(ctx)
	if err != nil {
		return nil, err
	}
	out := make([]Device, 0, len(st.Disks))
	for _, d := range st.Disks {
		out = append(out, deviceOf(d.Device))
	}
	return out, nil
}

// Devices lists every disk; the use of claimed ones comes from the status.
func (p process) Devices(ctx context.Context) ([]Device, error) {
	list, err := p.c.Devices(ctx)
	if err != nil {
		return nil, err
	}
	out := make([]Device, 0, len(list))
	for _, d := range list {
		out = append(out, deviceOf(d))
	}
	return out, nil
}

func (p process) Claim(ctx context.Context, path string) (Device, error) {
	d, err := p.c.Claim(ctx, storagectl.ClaimRequest{Path: path})
	if err != nil {
		return Device{}, err
	}
	claimed, err := p.Claimed(ctx) // the answer does not tell the use
	if err != nil {
		return Device{}, err
	}
	for _, c := range claimed {
		if c.ID == d.ID {
			return c, nil
		}
	}
	return deviceOf(d), nil
}

func (p process) Wipe(ctx context.Context, path string, keep []ids.ID) error {
	return p.c.Wipe(ctx, path, keep...)
}

func (p process) Forget(ctx context.Context, disk ids.ID) error { return p.c.Release(ctx, disk) }

// Freer frees deleted volumes on this node's disks, for svc/volume.
type Freer struct{ c *storagectl.Client }

// NewFreer returns the Freer of the node whose control socket c speaks to.
func NewFreer(c *storagectl.Client) Freer { return Freer{c} }

// Copies lists what the disks of this node hold of volumes.
func (f Freer) Copies(ctx context.Context) ([]storagectl.Copy, error) { return f.c.Copies(ctx) }

// DropStray frees a copy that lies elsewhere now.
func (f Freer) DropStray(ctx context.Context, seen storagectl.Copy) error {
	return f.c.DropStray(ctx, seen)
}

// SetLimits says how much of each disk guests may use.
func (f Freer) SetLimits(ctx context.Context, limits map[ids.ID]size.Bytes) error {
	r := storagectl.LimitsRequest{Bytes: map[ids.ID]int64{}}
	for id, b := range limits {
		r.Bytes[id] = int64(b)
	}
	return f.c.SetLimits(ctx, r)
}

// FreeVolume frees a volume by its tomb, as it was read.
func (f Freer) FreeVolume(ctx context.Context, vol ids.ID, disks []ids.ID, tomb json.RawMessage) error {
	return f.c.DeleteVolume(ctx, storagectl.DeleteRequest{Volume: vol, Disks: disks, Record: tomb})
}
