// Package viaapi lets the drill use a cluster as any other client does: through
// its API.
package viaapi

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"time"

	"roseau/internal/base/errs"
	"roseau/internal/base/size"
	"roseau/internal/client"
	"roseau/internal/drill"
	"roseau/internal/model"
	"roseau/internal/svc/disk"
	"roseau/internal/svc/maint"
	"roseau/internal/svc/member"
	"roseau/internal/svc/vm"
	"roseau/internal/svc/volume"
)

// Cluster is a cluster behind its API.
type Cluster struct{ c *client.Client }

// New returns the cluster that c talks to.
func New(c *client.Client) *Cluster { return &Cluster{c: c} }

// Name returns the cluster's name.
func (k *Cluster) Name(ctx context.Context) (string, error) {
	var st member.Status
	if err := k.c.Get(ctx, "/v1/cluster/status", &st); err != nil {
		return "", err
	}
	if st.Cluster == nil {
		return "", errs.New(errs.Conflict, "run a drill: this node belongs to no cluster").WithHint("roseau cluster init")
	}
	return st.Cluster.Name, nil
}

// Nodes lists the nodes.
func (k *Cluster) Nodes(ctx context.Context) ([]model.Node, error) {
	var out []model.Node
	return out, k.c.Get(ctx, "/v1/nodes", &out)
}

// Outlook asks what can fail next.
func (k *Cluster) Outlook(ctx context.Context) (int, string, error) {
	var st member.Status
	if err := k.c.Get(ctx, "/v1/cluster/status", &st); err != nil {
		return 0, "", err
	}
	return st.Quorum.Nodes, st.Quorum.Text, nil
}

// Leader is the node of etcd's leader, waited for if there is none at the moment
// or it is a witness's.
func (k *Cluster) Leader(ctx context.Context) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	for {
		var st member.Status
		err := k.c.Get(ctx, "/v1/cluster/status", &st)
		for _, n := range st.Nodes {
			if err == nil && n.Name == st.Quorum.Leader {
				return n.Name, nil
			}
		}
		select {
		case <-ctx.Done():
			return "", errs.New(errs.Unavailable, "find etcd's leader: no node leads (%q): %w", st.Quorum.Leader, errors.Join(err, context.Cause(ctx)))
		case <-tick.C:
		}
	}
}

// Disks lists the claimed disks of the nodes that answer.
func (k *Cluster) Disks(ctx context.Context) ([]model.Disk, error) {
	var list disk.List
	if err := k.c.Get(ctx, "/v1/disks", &list); err != nil {
		return nil, err
	}
	nodes, err := k.Nodes(ctx)
	if err != nil {
		return nil, err
	}
	var out []model.Disk
	for _, i := range list.Disks {
		if i.ID.IsZero() {
			continue
		}
		d := model.Disk{Meta: model.Meta{ID: i.ID, Name: i.Name}, Spec: model.DiskSpec{Path: i.Path, Size: i.Size}, Status: model.DiskStatus{State: i.State}}
		for _, n := range nodes {
			if n.Name == i.Node {
				d.Spec.Node = n.ID
			}
		}
		out = append(out, d)
	}
	return out, nil
}

// VM shows a VM.
func (k *Cluster) VM(ctx context.Context, name string) (model.VM, error) {
	var v vm.Info
	err := k.c.Get(ctx, "/v1/vms/"+url.PathEscape(name), &v)
	return v.VM, err
}

func (k *Cluster) volume(ctx context.Context, name string) (v volume.Info, err error) {
	return v, k.c.Get(ctx, "/v1/volumes/"+url.PathEscape(name), &v)
}

// Volume shows a volume.
func (k *Cluster) Volume(ctx context.Context, name string) (model.Volume, error) {
	v, err := k.volume(ctx, name)
	return v.Volume, err
}

// VolumeDisks returns the identities of the disks that hold copies.
func (k *Cluster) VolumeDisks(ctx context.Context, name string) ([]string, error) {
	v, err := k.volume(ctx, name)
	if err != nil {
		return nil, err
	}
	disks, err := k.Disks(ctx)
	if err != nil {
		return nil, err
	}
	var out []string
	for _, c := range v.Copies {
		for _, d := range disks {
			if d.Name == c.Disk || d.ID.String() == c.Disk {
				out = append(out, d.ID.String())
			}
		}
	}
	return out, nil
}

// Events returns the events since a moment.
func (k *Cluster) Events(ctx context.Context, since time.Time) ([]model.Event, error) {
	var all, out []model.Event
	if err := k.c.Get(ctx, "/v1/events?limit=1000", &all); err != nil {
		return nil, err
	}
	for _, e := range all {
		if !e.Time.Before(since) {
			out = append(out, e)
		}
	}
	return out, nil
}

// change does a request and waits for its task.
func (k *Cluster) change(ctx context.Context, method, path string, in any) error {
	t, err := k.c.Change(ctx, method, path, in, nil)
	if err != nil || t == nil {
		return err
	}
	return k.wait(ctx, t)
}

func (k *Cluster) wait(ctx context.Context, t *model.Task) error {
	end, err := k.c.WaitTask(ctx, t.ID.String(), nil)
	if err != nil {
		return err
	}
	return client.TaskError(end)
}

// ImportImage uploads a file.
func (k *Cluster) ImportImage(ctx context.Context, name, path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	var raw json.RawMessage
	if _, err := k.c.Upload(ctx, http.MethodPost, "/v1/images?"+url.Values{"name": {name}}.Encode(), f, &raw); err != nil {
		return err
	}
	t := new(model.Task)
	if err := json.Unmarshal(raw, t); err != nil {
		return fmt.Errorf("import image %s: decode task: %w", name, err)
	}
	return k.wait(ctx, t)
}

// CreateVM creates and starts a VM.
func (k *Cluster) CreateVM(ctx context.Context, r drill.VMRequest) error {
	disks := []vm.DiskSource{{Image: r.Image, Size: r.DiskSize}}
	for _, d := range r.More {
		disks = append(disks, vm.DiskSource{Image: d.Image, Size: d.Size})
	}
	ha := model.HAOn
	if r.NoHA {
		ha = model.HAOff
	}
	return k.change(ctx, http.MethodPost, "/v1/vms", vm.CreateRequest{HA: ha,
		Name: r.Name, CPUs: r.CPUs, Memory: r.Memory, Start: true, Disks: disks, NICs: []vm.NIC{{Network: r.Network}},
	})
}

// Migrate moves a VM.
func (k *Cluster) Migrate(ctx context.Context, name, node string) error {
	return k.change(ctx, http.MethodPost, "/v1/vms/"+url.PathEscape(name)+"/migrate", vm.MigrateRequest{Node: node})
}

// MigrateBounded moves a VM to the best node with bounds.
func (k *Cluster) MigrateBounded(ctx context.Context, name string, bandwidth size.Bytes, giveUpAfter time.Duration) error {
	return k.change(ctx, http.MethodPost, "/v1/vms/"+url.PathEscape(name)+"/migrate", vm.MigrateRequest{Bandwidth: bandwidth, GiveUpAfter: giveUpAfter})
}

// DeleteVM pulls a VM's plug and deletes it with its volumes.
func (k *Cluster) DeleteVM(ctx context.Context, name string) error {
	path := "/v1/vms/" + url.PathEscape(name)
	if err := k.change(ctx, http.MethodPost, path+"/stop", vm.StopRequest{Force: true}); err != nil && !errors.Is(err, errs.Conflict) {
		return err
	}
	return k.change(ctx, http.MethodDelete, path, nil)
}

// DeleteImage deletes an image.
func (k *Cluster) DeleteImage(ctx context.Context, name string) error {
	return k.change(ctx, http.MethodDelete, "/v1/images/"+url.PathEscape(name), nil)
}

// CreateVolume creates a volume.
func (k *Cluster) CreateVolume(ctx context.Context, name string, bytes size.Bytes) error {
	return k.change(ctx, http.MethodPost, "/v1/volumes", volume.CreateRequest{Name: name, Size: bytes})
}

// DeleteVolume deletes a volume.
func (k *Cluster) DeleteVolume(ctx context.Context, name string) error {
	return k.change(ctx, http.MethodDelete, "/v1/volumes/"+url.PathEscape(name), nil)
}

// ReplaceNode lets a node take the place of another.
func (k *Cluster) ReplaceNode(ctx context.Context, old, with string) error {
	return k.change(ctx, http.MethodPost, "/v1/nodes/"+url.PathEscape(old)+"/replace", volume.ReplaceNodeRequest{With: with})
}

// Drain moves every VM away from a node.
func (k *Cluster) Drain(ctx context.Context, node string) error {
	return k.change(ctx, http.MethodPost, "/v1/nodes/"+url.PathEscape(node)+"/drain", nil)
}

// Undrain ends a drain.
func (k *Cluster) Undrain(ctx context.Context, node string) error {
	_, err := k.c.Change(ctx, http.MethodPost, "/v1/nodes/"+url.PathEscape(node)+"/undrain", maint.UndrainRequest{}, new(model.Node))
	return err
}

// Leave shuts a node down or reboots it.
func (k *Cluster) Leave(ctx context.Context, node string, verb model.OrderVerb) error {
	return k.change(ctx, http.MethodPost, "/v1/nodes/"+url.PathEscape(node)+"/"+string(verb), maint.LeaveRequest{})
}

// RestartRolling restarts every node, one at a time.
func (k *Cluster) RestartRolling(ctx context.Context) error {
	return k.change(ctx, http.MethodPost, "/v1/cluster/restart", nil)
}

// ReturnDisk waits until a disk that was put back serves again.
func (k *Cluster) ReturnDisk(ctx context.Context, d model.Disk) error {
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	for {
		disks, err := k.Disks(ctx)
		for _, have := range disks {
			if have.ID == d.ID && have.Status.State == model.DiskActive {
				return nil
			}
		}
		select {
		case <-ctx.Done():
			return errs.New(errs.Unavailable, "wait for disk %s to serve again: %w", d.Spec.Path, errors.Join(err, context.Cause(ctx)))
		case <-tick.C:
		}
	}
}
