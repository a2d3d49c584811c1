package labclient

import (
	"context"
	"net/http"
	"path/filepath"
	"time"

	"roseau/internal/core/diskcare"
	"roseau/internal/driver/ctlsock"
)

// Client talks to one lab's daemon.
type Client struct {
	dir  string
	sock *ctlsock.Client
}

// New returns a client of the lab in dir. It connects at the first call.
func New(dir string) *Client {
	name := filepath.Base(dir)
	return &Client{dir: dir, sock: ctlsock.New(ctlsock.Client{Socket: filepath.Join(dir, SocketFile), Who: "lab " + name,
		Hint: "start it with `roseau lab up --name " + name + "`"}, true)}
}

// Open returns a client of the lab called name.
func Open(name string) (*Client, error) {
	dir, err := Dir(name)
	if err != nil {
		return nil, err
	}
	return New(dir), nil
}

// Close releases idle connections.
func (c *Client) Close() { c.sock.Close() }

// Dir returns the lab's directory.
func (c *Client) Dir() string { return c.dir }

// Status returns the whole lab.
func (c *Client) Status(ctx context.Context) (Status, error) {
	var st Status
	err := c.sock.Call(ctx, http.MethodGet, "/status", nil, &st)
	return st, err
}

// CutNode takes the power from a node: its cables lose carrier, its first
// process gets one SIGKILL, and its disks lose what they had not flushed, at
// random. It returns when every process is gone.
func (c *Client) CutNode(ctx context.Context, node string) (Answer, error) {
	return c.order(ctx, "node-cut", Request{Node: node})
}

// RestoreNode gives a node its power again; it returns when its units are started.
func (c *Client) RestoreNode(ctx context.Context, node string) error {
	return c.orderErr(ctx, "node-restore", Request{Node: node})
}

// FreezeNode stops every process of a node at once, as a hypervisor would.
func (c *Client) FreezeNode(ctx context.Context, node string) error {
	return c.orderErr(ctx, "node-freeze", Request{Node: node})
}

// ThawNode lets a frozen node go on.
func (c *Client) ThawNode(ctx context.Context, node string) error {
	return c.orderErr(ctx, "node-thaw", Request{Node: node})
}

// NodeBinary lets a node run another build of roseau from its next boot on, by its
// absolute path on this machine; "" is the lab's own again.
func (c *Client) NodeBinary(ctx context.Context, node, path string) error {
	return c.orderErr(ctx, "node-binary", Request{Node: node, Path: path})
}

// LinkCut takes the carrier from a node's cable to network, to all for "".
func (c *Client) LinkCut(ctx context.Context, node, network string) error {
	return c.orderErr(ctx, "link-cut", Request{Node: node, Network: network})
}

// LinkRestore plugs the cable in again.
func (c *Client) LinkRestore(ctx context.Context, node, network string) error {
	return c.orderErr(ctx, "link-restore", Request{Node: node, Network: network})
}

// LinkLossy lets a node's cable to network, to all for "", lose percent (0 to 100) of
// its frames in either direction, at random; 0 ends it.
func (c *Client) LinkLossy(ctx context.Context, node, network string, percent int) error {
	return c.orderErr(ctx, "link-lossy", Request{Node: node, Network: network, Percent: percent})
}

// Partition parts groups of nodes on network, on all for "". It replaces the
// partition before.
func (c *Client) Partition(ctx context.Context, network string, groups ...[]string) error {
	return c.orderErr(ctx, "partition", Request{Network: network, Groups: groups})
}

// Heal ends the partition, plugs in every cable and ends its losses.
func (c *Client) Heal(ctx context.Context) error { return c.orderErr(ctx, "heal", Request{}) }

// DiskPull takes a disk out of a running node; what it had not flushed is torn.
func (c *Client) DiskPull(ctx context.Context, node, disk string) error {
	return c.orderErr(ctx, "disk-pull", Request{Node: node, Disk: disk})
}

// DiskInsert puts a disk back in, and ends slow and hang.
func (c *Client) DiskInsert(ctx context.Context, node, disk string) error {
	return c.orderErr(ctx, "disk-insert", Request{Node: node, Disk: disk})
}

// DiskSlow adds latency to every operation of a disk; 0 ends it.
func (c *Client) DiskSlow(ctx context.Context, node, disk string, latency time.Duration) error {
	return c.orderErr(ctx, "disk-slow", Request{Node: node, Disk: disk, Latency: latency})
}

// DiskHealth sets what a disk says of its own health; nil: nothing.
func (c *Client) DiskHealth(ctx context.Context, node, disk string, h *diskcare.Health) error {
	return c.orderErr(ctx, "disk-health", Request{Node: node, Disk: disk, Health: h})
}

// DiskHang makes operations of a disk wait until DiskInsert.
func (c *Client) DiskHang(ctx context.Context, node, disk string) error {
	return c.orderErr(ctx, "disk-hang", Request{Node: node, Disk: disk})
}

// DiskCorrupt flips req.Count bits at rest (0 = 8) in [req.From, req.To) of a disk.
func (c *Client) DiskCorrupt(ctx context.Context, req Request) (Answer, error) {
	return c.order(ctx, "disk-corrupt", req)
}

// PowerCut takes the power from all nodes at once.
func (c *Client) PowerCut(ctx context.Context) (Answer, error) {
	return c.order(ctx, "power-cut", Request{})
}

// PowerRestore gives every node without power its power again.
func (c *Client) PowerRestore(ctx context.Context) error {
	return c.orderErr(ctx, "power-restore", Request{})
}

// ServiceStop stops a service of a node until ServiceStart: node, etcd, storage,
// guard:VM (name or ID of a VM on that node), volume:ID.
func (c *Client) ServiceStop(ctx context.Context, node, service string) error {
	return c.orderErr(ctx, "service-stop", Request{Node: node, Service: service})
}

// ServiceStart starts a service again.
func (c *Client) ServiceStart(ctx context.Context, node, service string) error {
	return c.orderErr(ctx, "service-start", Request{Node: node, Service: service})
}

// ServiceKill sends SIGKILL to the main process of a service; its supervisor
// restarts it. The answer's At is the time of the signal.
func (c *Client) ServiceKill(ctx context.Context, node, service string) (Answer, error) {
	return c.order(ctx, "service-kill", Request{Node: node, Service: service})
}

// ServiceReset resets the TCP connections of a service of a node: storage or node.
// They are made anew.
func (c *Client) ServiceReset(ctx context.Context, node, service string) error {
	return c.orderErr(ctx, "service-reset", Request{Node: node, Service: service})
}

// BMCCut takes a node's management controller off the network.
func (c *Client) BMCCut(ctx context.Context, node string) error {
	return c.orderErr(ctx, "bmc-cut", Request{Node: node})
}

// BMCRestore puts it back.
func (c *Client) BMCRestore(ctx context.Context, node string) error {
	return c.orderErr(ctx, "bmc-restore", Request{Node: node})
}

// BMCRenew gives it another certificate, as a replaced controller has.
func (c *Client) BMCRenew(ctx context.Context, node string) error {
	return c.orderErr(ctx, "bmc-renew", Request{Node: node})
}

// Down ends the lab: all nodes lose power, the daemon ends. The lab's directory
// stays the caller's business.
func (c *Client) Down(ctx context.Context) error { return c.orderErr(ctx, "down", Request{}) }

func (c *Client) orderErr(ctx context.Context, verb string, req Request) error {
	_, err := c.order(ctx, verb, req)
	return err
}

func (c *Client) order(ctx context.Context, verb string, req Request) (Answer, error) {
	var a Answer
	err := c.sock.Call(ctx, http.MethodPost, "/do/"+verb, req, &a)
	return a, err
}
