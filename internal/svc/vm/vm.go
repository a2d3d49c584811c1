// Package vm keeps the virtual machines: what people ask for through the API
// becomes the spec and, through the HA manager, a placement; the reconciler of
// the node that is placed runs the guard.
//
// Who does what: operations write spec (and, for a migration, the placement);
// svc/ha alone decides on starts, stops and recoveries; Reconciler brings this
// node's guards to what the placements say.
package vm

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"roseau/internal/api"
	"roseau/internal/base/errs"
	"roseau/internal/base/ids"
	"roseau/internal/base/size"
	"roseau/internal/core/repl"
	"roseau/internal/driver/guardctl"
	"roseau/internal/driver/volumectl"
	"roseau/internal/model"
	"roseau/internal/store"
	"roseau/internal/svc"
	"roseau/internal/svc/ha"
	"roseau/internal/svc/records"
	"roseau/internal/svc/volume"
)

// Images is what creating a VM needs of the images.
type Images interface {
	// Ready returns an image that can be copied, or refuses.
	Ready(ctx context.Context, name string) (*model.Image, error)
	// CopyTo copies an image into a volume that nobody has open.
	CopyTo(ctx context.Context, img *model.Image, vol *model.Volume, progress func(done, total int64)) error
}

// Service has the operations on VMs.
type Service struct {
	env     *svc.Env
	world   *records.World
	viewer  *ha.Viewer
	volumes *volume.Service
	images  Images
	guards  Guards

	turn sync.Mutex // held while a migration is placed; see placeInTurn
}

// New returns the service of a node.
func New(env *svc.Env, w *records.World, v *ha.Viewer, vols *volume.Service, images Images, g Guards) *Service {
	return &Service{env: env, world: w, viewer: v, volumes: vols, images: images, guards: g}
}

// CreateRequest is the body of POST /v1/vms.
type CreateRequest struct {
	Name     string       `json:"name"`
	CPUs     int          `json:"cpus,omitempty" doc:"1 to 64; default 1"`
	Memory   size.Bytes   `json:"memory,omitempty" doc:"default 512MiB"`
	Disks    []DiskSource `json:"disks,omitempty" doc:"in boot order"`
	NICs     []NIC        `json:"nics,omitempty"`
	Pool     string       `json:"pool,omitempty" doc:"of new disks; default: the only one"`
	HA       model.HAMode `json:"ha,omitempty" doc:"on (default), best-effort or off"`
	Priority int          `json:"priority,omitempty"`
	Accel    string       `json:"accel,omitempty" doc:"auto (default), kvm or tcg"`
	CPUModel string       `json:"cpu_model,omitempty"`
	Start    bool         `json:"start,omitempty"`
}

// DiskSource says where a disk of a new VM comes from: exactly one of Volume,
// Image (with Size to make it larger) and Size.
type DiskSource struct {
	Size   size.Bytes `json:"size,omitempty"`
	Image  string     `json:"image,omitempty"`
	Volume string     `json:"volume,omitempty" doc:"an existing volume that is nobody's"`
}

// NIC is a network interface of a new VM.
type NIC struct {
	Network          string `json:"network"`
	MAC              string `json:"mac,omitempty" doc:"drawn if empty"`
	AllowMACSpoofing bool   `json:"allow_mac_spoofing,omitempty"`
}

// SetRequest is the body of PATCH /v1/vms/{ref}; nil leaves a field as it is.
type SetRequest struct {
	CPUs     *int          `json:"cpus,omitempty"`
	Memory   *size.Bytes   `json:"memory,omitempty"`
	HA       *model.HAMode `json:"ha,omitempty"`
	Priority *int          `json:"priority,omitempty"`
	// After, StartDelay and MaxRestarts concern its starts, and hold from the next
	// one on.
	After       *[]string      `json:"after,omitempty" doc:"VMs that must run before it is started; [] takes them away"`
	StartDelay  *time.Duration `json:"start_delay_ns,omitempty" doc:"how long those must have run"`
	MaxRestarts *int           `json:"max_restarts,omitempty" doc:"failures within ten minutes that make it failed; 0 = 5"`
}

// StopRequest is the body of POST /v1/vms/{ref}/stop.
type StopRequest struct {
	Force bool `json:"force,omitempty" doc:"pull the plug instead of pressing the power button"`
}

// MigrateRequest is the body of POST /v1/vms/{ref}/migrate.
type MigrateRequest struct {
	Node string `json:"node,omitempty" doc:"default: the best one"`
	// Bandwidth bounds the stream; 0: no bound.
	Bandwidth size.Bytes `json:"bandwidth,omitempty" doc:"most bytes a second, 0 = no bound"`
	Network   string     `json:"network,omitempty" enum:"storage,cluster" doc:"network that carries the memory; default: storage, cluster if that is cut"`
	// GiveUpAfter calls it off if memory is still being sent then; 0: only when it
	// is hopeless.
	GiveUpAfter time.Duration `json:"give_up_after_ns,omitempty" minimum:"0" doc:"call it off if it is not through by then, 0 = only when it is hopeless"`
}

// Info is a VM with its disks' health.
type Info struct {
	model.VM
	Volumes []VolumeInfo `json:"volumes,omitempty"`
}

// VolumeInfo is a disk of a VM and its health.
type VolumeInfo struct {
	Name   string             `json:"name"`
	Status model.VolumeStatus `json:"status"`
}

// Routes adds the operations.
func (s *Service) Routes(r *api.Router) {
	huma.Register(r, api.Op("list-vms", "GET", "/v1/vms", "List VMs"), func(ctx context.Context, _ *struct{}) (*api.Body[[]*model.VM], error) {
		return api.OK(store.List[model.VM](ctx, s.env.Store.Relaxed()))
	})
	huma.Register(r, api.Op("get-vm", "GET", "/v1/vms/{ref}", "Show a VM"), func(ctx context.Context, in *api.Ref) (*api.Body[*Info], error) {
		return api.OK(s.Get(ctx, in.Ref))
	})
	huma.Register(r, api.Op("create-vm", "POST", "/v1/vms", "Create a VM"), func(ctx context.Context, in *struct{ Body CreateRequest }) (*api.AcceptTask, error) {
		return api.Accepted(s.StartCreate(ctx, in.Body))
	})
	huma.Register(r, api.Op("set-vm", "PATCH", "/v1/vms/{ref}", "Change a VM; what the guest sees changes at its next start"), func(ctx context.Context, in *struct {
		api.Ref
		Body SetRequest
	}) (*api.Body[*model.VM], error) {
		return api.OK(s.Set(ctx, in.Ref.Ref, in.Body))
	})
	huma.Register(r, api.Op("delete-vm", "DELETE", "/v1/vms/{ref}", "Delete a stopped VM and its volumes"), func(ctx context.Context, in *api.Ref) (*api.AcceptTask, error) {
		return api.Accepted(s.StartDelete(ctx, in.Ref))
	})
	huma.Register(r, api.Op("start-vm", "POST", "/v1/vms/{ref}/start", "Start a VM"), func(ctx context.Context, in *api.Ref) (*api.AcceptTask, error) {
		return api.Accepted(s.StartStart(ctx, in.Ref))
	})
	huma.Register(r, api.Op("stop-vm", "POST", "/v1/vms/{ref}/stop", "Stop a VM"), func(ctx context.Context, in *struct {
		api.Ref
		Body StopRequest
	}) (*api.AcceptTask, error) {
		return api.Accepted(s.StartStop(ctx, in.Ref.Ref, in.Body))
	})
	huma.Register(r, api.Op("reset-vm", "POST", "/v1/vms/{ref}/reset", "Press the reset button of a VM"), func(ctx context.Context, in *api.Ref) (*api.AcceptTask, error) {
		return api.Accepted(s.StartReset(ctx, in.Ref))
	})
	huma.Register(r, api.Op("migrate-vm", "POST", "/v1/vms/{ref}/migrate", "Move a running VM to another node"), func(ctx context.Context, in *struct {
		api.Ref
		DryRun bool `query:"dry_run"`
		Body   MigrateRequest
	}) (*api.AcceptTask, error) {
		return s.migrateRoute(ctx, in.Ref.Ref, in.Body, in.DryRun)
	})
	huma.Register(r, api.Op("cancel-migration", "DELETE", "/v1/vms/{ref}/migrate", "Call off the migration of a VM, which stays where it is"), func(ctx context.Context, in *api.Ref) (*api.AcceptTask, error) {
		return api.Accepted(s.StartCancel(ctx, in.Ref))
	})
	for verb, summary := range map[string]string{"pause": "Stop the processors of a VM", "resume": "Let a paused VM go on"} {
		huma.Register(r, api.Op(verb+"-vm", "POST", "/v1/vms/{ref}/"+verb, summary), func(ctx context.Context, in *api.Ref) (*api.AcceptTask, error) {
			return api.Accepted(s.StartPress(ctx, in.Ref, verb))
		})
	}
	huma.Register(r, api.Op("screenshot-vm", "GET", "/v1/vms/{ref}/screenshot", "What a running VM shows, as PNG"), func(ctx context.Context, in *api.Ref) (*api.Body[*guardctl.Screenshot], error) {
		return api.OK(s.Screenshot(ctx, in.Ref))
	})
	huma.Register(r, api.Op("reboot-vm", "POST", "/v1/vms/{ref}/reboot", "Power a VM off by its button and on again"), func(ctx context.Context, in *api.Ref) (*api.AcceptTask, error) {
		return api.Accepted(s.StartReboot(ctx, in.Ref))
	})
	s.snapshotRoutes(r)
	s.nodeRoutes(r)
	r.Mux.Get("/v1/vms/{ref}/console", s.console(r))
}

// migrateRoute starts the migration. A dry run answers, with 200, the task that
// it would have been: the decision as its log and result.
func (s *Service) migrateRoute(ctx context.Context, ref string, req MigrateRequest, dry bool) (*api.AcceptTask, error) {
	vm, d, err := s.ChooseTarget(ctx, ref, req.Node)
	if err != nil {
		return nil, err
	}
	if !dry {
		d.bandwidth, d.network, d.patience = req.Bandwidth, req.Network, req.GiveUpAfter
		return api.Accepted(s.StartMigrate(ctx, vm, d))
	}
	t := &model.Task{Action: "vm migrate " + vm.Name, Node: s.env.NodeName,
		Result: fmt.Sprintf("vm %s would move from %s to %s", vm.Name, d.from, d.decision.Why)}
	for _, r := range d.decision.Refusals {
		t.Log = append(t.Log, "not "+r.Name+": "+r.Why)
	}
	return &api.AcceptTask{Status: http.StatusOK, Body: t}, nil
}

// GuardRef is the input of operations on the guard of a VM on a node.
type GuardRef struct {
	Node string `path:"node"`
	VM   string `path:"vm" doc:"id of the VM"`
}

// nodeRoutes are for other nodes: what only the node that runs a VM can do.
func (s *Service) nodeRoutes(r *api.Router) {
	on := func(id, method, path, summary string) huma.Operation {
		op := api.Op(id, method, "/v1/nodes/{node}/vms/{vm}"+path, summary)
		op.Middlewares = huma.Middlewares{r.OnNode(s.env.OnNode("node"))}
		return op
	}
	do := func(fn func(ctx context.Context, c Control) error) func(context.Context, *GuardRef) (*struct{}, error) {
		return func(ctx context.Context, in *GuardRef) (*struct{}, error) {
			vm, err := ids.Parse(in.VM)
			if err != nil {
				return nil, err
			}
			return nil, fn(ctx, s.guards.Control(vm))
		}
	}
	huma.Register(r, on("get-guard", "GET", "/guard", "Show what the guard of a VM says"), func(ctx context.Context, in *GuardRef) (*api.Body[guardctl.Status], error) {
		vm, err := ids.Parse(in.VM)
		if err != nil {
			return nil, err
		}
		return api.OK(s.guards.Control(vm).Status(ctx))
	})
	huma.Register(r, on("screenshot-guest", "GET", "/screenshot", "What a VM shows"), func(ctx context.Context, in *GuardRef) (*api.Body[guardctl.Screenshot], error) {
		vm, err := ids.Parse(in.VM)
		if err != nil {
			return nil, err
		}
		return api.OK(s.guards.Control(vm).Screenshot(ctx))
	})
	huma.Register(r, on("kill-guest", "POST", "/kill", "Pull the plug of a VM"), do(func(ctx context.Context, c Control) error {
		return c.Stop(ctx, guardctl.StopRequest{Force: true})
	}))
	huma.Register(r, on("reset-guest", "POST", "/reset", "Press the reset button of a VM"), do(func(ctx context.Context, c Control) error { return c.Reset(ctx) }))
	huma.Register(r, on("scrub-guest-volume", "POST", "/scrub", "Compare the copies of a VM's volume"), func(ctx context.Context, in *struct {
		GuardRef
		Body volumectl.ScrubRequest
	}) (*api.Body[volumectl.ScrubStatus], error) {
		vm, err := ids.Parse(in.VM)
		if err != nil {
			return nil, err
		}
		return api.OK(s.guards.Control(vm).Scrub(ctx, in.Body))
	})
	huma.Register(r, on("accept-guest-tail", "POST", "/accept-tail", "Tell what a VM's volume waits to be allowed, or allow it"), func(ctx context.Context, in *struct {
		GuardRef
		Body volumectl.TailRequest
	}) (*api.Body[volumectl.Tail], error) {
		vm, err := ids.Parse(in.VM)
		if err != nil {
			return nil, err
		}
		return api.OK(s.guards.Control(vm).Tail(ctx, in.Body))
	})
	huma.Register(r, on("pause-guest", "POST", "/pause", "Stop the processors of a VM"), do(func(ctx context.Context, c Control) error { return c.Pause(ctx) }))
	huma.Register(r, on("resume-guest", "POST", "/resume", "Let a paused VM go on"), do(func(ctx context.Context, c Control) error { return c.Resume(ctx) }))
	huma.Register(r, on("replace-guest-disk", "POST", "/replace-disk", "Rebuild copies of a VM's volumes onto another disk"), func(ctx context.Context, in *struct {
		GuardRef
		Body guardctl.ReplaceDiskRequest
	}) (*struct{}, error) {
		vm, err := ids.Parse(in.VM)
		if err != nil {
			return nil, err
		}
		return nil, s.guards.Control(vm).ReplaceDisk(ctx, in.Body)
	})
	huma.Register(r, on("snapshot-guest", "POST", "/snapshot", "Have a VM's guard take or delete a snapshot"), func(ctx context.Context, in *struct {
		GuardRef
		Body repl.SnapshotOrder
	}) (*struct{}, error) {
		vm, err := ids.Parse(in.VM)
		if err != nil {
			return nil, err
		}
		return nil, s.guards.Control(vm).Snapshot(ctx, in.Body)
	})
}

// Get returns a VM with the health of its volumes.
func (s *Service) Get(ctx context.Context, ref string) (*Info, error) {
	vm, err := store.Get[model.VM](ctx, s.env.Store.Relaxed(), ref)
	if err != nil {
		return nil, err
	}
	i := &Info{VM: *vm}
	all, err := s.volumes.List(ctx)
	if err != nil {
		return nil, err
	}
	for _, id := range volumeIDs(vm) {
		for _, v := range all {
			if v.ID == id {
				i.Volumes = append(i.Volumes, VolumeInfo{Name: v.Name, Status: v.Status})
			}
		}
	}
	return i, nil
}

// newVM checks a request and returns the VM that it describes; volumes are not
// made yet.
func (s *Service) newVM(ctx context.Context, req CreateRequest) (*model.VM, []*model.Volume, []*model.Image, error) {
	vm := &model.VM{Meta: model.Meta{ID: ids.New(), Name: req.Name}, Spec: model.VMSpec{CPUs: req.CPUs, Memory: req.Memory, HA: req.HA,
		Accel: req.Accel, CPUModel: req.CPUModel, Priority: req.Priority, Running: req.Start}}
	sp := &vm.Spec
	if sp.CPUs == 0 {
		sp.CPUs = 1
	}
	if sp.Memory == 0 {
		sp.Memory = 512 * size.MiB
	}
	if sp.HA == "" {
		sp.HA = model.HAOn
	}
	if sp.Accel == "" {
		sp.Accel = "auto"
	}
	if err := model.CheckName(model.KindVM, vm.Name); err != nil {
		return nil, nil, nil, err
	}
	if _, err := store.Get[model.VM](ctx, s.env.Store, vm.Name); err == nil {
		return nil, nil, nil, errs.New(errs.Conflict, "create vm %s: the name is taken", vm.Name).WithHint("`roseau vm list`")
	} else if !errors.Is(err, errs.NotFound) {
		return nil, nil, nil, err
	}
	for i, n := range req.NICs {
		if _, err := store.Get[model.Network](ctx, s.env.Store, n.Network); err != nil {
			return nil, nil, nil, fmt.Errorf("create vm %s: nics[%d]: %w", vm.Name, i, err)
		}
		if n.MAC == "" {
			n.MAC = newMAC()
		}
		sp.NICs = append(sp.NICs, model.VMNIC{Network: n.Network, MAC: strings.ToLower(n.MAC), AllowMACSpoofing: n.AllowMACSpoofing})
	}
	vols, images, err := s.newDisks(ctx, vm, req)
	if err != nil {
		return nil, nil, nil, err
	}
	if err := vm.Validate(); err != nil {
		return nil, nil, nil, err
	}
	return vm, vols, images, s.checkMACs(ctx, vm)
}

// newDisks returns a volume (nil: it exists) and an image (nil: none) for each
// disk; a VM without disks gets a state volume, for its lease.
func (s *Service) newDisks(ctx context.Context, vm *model.VM, req CreateRequest) (vols []*model.Volume, images []*model.Image, err error) {
	for i, d := range req.Disks {
		var img *model.Image
		v := &model.Volume{Meta: model.Meta{ID: ids.New(), Name: fmt.Sprintf("%s-%d", vm.Name, i)}, Spec: model.VolumeSpec{Pool: req.Pool, Size: d.Size, VM: vm.Name}}
		switch {
		case d.Volume != "" && (d.Image != "" || d.Size != 0):
			return nil, nil, errs.New(errs.Invalid, "create vm %s: disks[%d]: volume %q contradicts size or image", vm.Name, i, d.Volume).WithHint("give one of volume, image, size")
		case d.Volume != "":
			v, err = s.freeVolume(ctx, vm.Name, d.Volume)
			if err != nil {
				return nil, nil, err
			}
			vm.Spec.Disks = append(vm.Spec.Disks, model.VMDisk{Volume: v.Name, ID: v.ID, Size: v.Spec.Size})
			vols, images = append(vols, nil), append(images, nil)
			continue
		case d.Image != "":
			if img, err = s.images.Ready(ctx, d.Image); err != nil {
				return nil, nil, fmt.Errorf("create vm %s: disks[%d]: %w", vm.Name, i, err)
			}
			if d.Size == 0 {
				v.Spec.Size = max((img.Spec.Size+model.VolumeAlign-1)/model.VolumeAlign*model.VolumeAlign, model.MinVolume)
			} else if d.Size < img.Spec.Size {
				return nil, nil, errs.New(errs.Invalid, "create vm %s: disks[%d].size is %s, image %s needs %s", vm.Name, i, d.Size, img.Name, img.Spec.Size).WithHint("leave the size out, or make it larger")
			}
		}
		if err := s.volumes.Check(ctx, v); err != nil {
			return nil, nil, fmt.Errorf("create vm %s: %w", vm.Name, err)
		}
		vm.Spec.Disks = append(vm.Spec.Disks, model.VMDisk{Volume: v.Name, ID: v.ID, Size: v.Spec.Size})
		vols, images = append(vols, v), append(images, img)
	}
	if len(req.Disks) == 0 {
		v := &model.Volume{Meta: model.Meta{ID: ids.New(), Name: vm.Name + "-state"}, Spec: model.VolumeSpec{Pool: req.Pool, Size: model.MinVolume, VM: vm.Name}}
		if err := s.volumes.Check(ctx, v); err != nil {
			return nil, nil, fmt.Errorf("create vm %s: %w", vm.Name, err)
		}
		vm.Spec.State = v.ID
		vols, images = append(vols, v), append(images, nil)
	}
	return vols, images, nil
}

func (s *Service) freeVolume(ctx context.Context, vm, name string) (*model.Volume, error) {
	v, err := store.Get[model.Volume](ctx, s.env.Store, name)
	if err != nil {
		return nil, fmt.Errorf("create vm %s: %w", vm, err)
	}
	if v.Spec.VM != "" || v.Spec.Image != "" {
		return nil, errs.New(errs.Conflict, "create vm %s: volume %s belongs to %s", vm, v.Name, v.Spec.VM+v.Spec.Image)
	}
	return v, nil
}

// checkMACs refuses an address that another VM has.
func (s *Service) checkMACs(ctx context.Context, vm *model.VM) error {
	all, err := store.List[model.VM](ctx, s.env.Store)
	if err != nil {
		return err
	}
	for _, o := range all {
		for _, n := range o.Spec.NICs {
			if slices.ContainsFunc(vm.Spec.NICs, func(m model.VMNIC) bool { return m.MAC == n.MAC }) {
				return errs.New(errs.Conflict, "create vm %s: mac %s belongs to vm %s", vm.Name, n.MAC, o.Name).WithHint("leave it out to have one drawn")
			}
		}
	}
	return nil
}

// newMAC draws an address of QEMU's range, which is locally administered.
func newMAC() string {
	b := make([]byte, 3)
	rand.Read(b) // never fails since Go 1.24
	return net.HardwareAddr{0x52, 0x54, 0x00, b[0], b[1], b[2]}.String()
}
