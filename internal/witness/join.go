package witness

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"roseau/internal/base/errs"
	"roseau/internal/base/paths"
	"roseau/internal/model"
	"roseau/internal/nodeconf"
	"roseau/internal/pki"
	"roseau/internal/svc/member"
)

const (
	joinTimeout = 60 * time.Second
	// DefaultPort is the first port of a witness.
	DefaultPort = paths.PortEtcdClient
)

// JoinRequest is what a join needs to know.
type JoinRequest struct {
	Token   string
	Name    string
	Address string // IP address of this machine that the nodes reach
	Port    int    // 0: DefaultPort
}

// Join makes the directory the data of a witness of the token's cluster. A
// witness of that cluster already is left as it is; one of another cluster is
// refused.
func Join(ctx context.Context, dir string, req JoinRequest) error {
	inv, err := member.ParseInvitation(req.Token)
	if err != nil {
		return err
	}
	if !inv.Witness {
		return errs.New(errs.Denied, "join witness: the token is for a node").WithHint("use it with `roseau cluster join`; for a witness: `roseau witness add`")
	}
	unlock, err := lockDir(dir)
	if err != nil {
		return err
	}
	defer unlock()
	have, err := load(dir)
	switch {
	case err == nil && have.Cluster == inv.Cluster:
		return nil
	case err == nil:
		return errs.New(errs.Conflict, "join witness: %s holds witness %s of cluster %s (%s), the token is of cluster %s", dir, have.Name, have.ClusterName, have.Cluster, inv.Cluster).
			WithHint("give this one another --data-dir and --port, or take the other one out first: `roseau witness remove %s` there", have.Name)
	case !errors.Is(err, errs.NotFound):
		return err
	}
	if req.Port == 0 {
		req.Port = DefaultPort
	}
	ip, err := netip.ParseAddr(req.Address)
	if err != nil || ip.IsUnspecified() || ip.IsMulticast() {
		return errs.New(errs.Invalid, "join witness: address %q: want one IP address of this machine", req.Address).WithHint("give --address IP: an address that the nodes reach")
	}
	return enlist(ctx, dir, inv, req)
}

// enlist asks the cluster and writes what it gives. The config comes last:
// without it the rest means nothing.
func enlist(ctx context.Context, dir string, inv member.Invitation, req JoinRequest) error {
	ctx, cancel := context.WithTimeout(ctx, joinTimeout)
	defer cancel()
	// The same id again with the same token, so that a join that broke goes on.
	id := inv.Token
	key, csr, err := pki.NewRequest(id.String())
	if err != nil {
		return fmt.Errorf("join witness: %w", err)
	}
	ans, err := member.AskToJoin(ctx, inv, member.JoinRequest{Token: inv.Token, Secret: inv.Secret, Node: id, CSR: string(csr), WitnessPort: req.Port,
		NodeRequest: member.NodeRequest{Name: req.Name, Addresses: map[model.NetworkRole][]string{model.RoleCluster: {req.Address}}}})
	if err != nil {
		return err
	}
	if err := member.CheckAnswer(inv, ans, id); err != nil {
		return err
	}
	for slot := range Slots {
		if err := os.RemoveAll(etcdDir(dir, slot+1)); err != nil {
			return fmt.Errorf("join witness: %w", err)
		}
	}
	if err := (pki.Files{CA: []byte(ans.CA), Cert: []byte(ans.Cert), Key: key}).Write(filepath.Join(dir, "pki")); err != nil {
		return err
	}
	c := &Config{Cluster: inv.Cluster, ClusterName: ans.ClusterName, Witness: id, Name: req.Name, Address: req.Address, Port: req.Port,
		Endpoints: ans.Endpoints, Seats: [Slots]nodeconf.Seat{}, Token: inv.Token}
	return c.save(dir)
}

func etcdDir(dir string, slot int) string { return filepath.Join(dir, fmt.Sprintf("etcd-%d", slot)) }

// lockDir keeps a second process away from the witness's data.
func lockDir(dir string) (unlock func(), err error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("lock witness: %w", err)
	}
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock witness: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		return nil, errs.New(errs.Conflict, "lock witness: another process uses %s: %w", dir, err)
	}
	return func() { f.Close() }, nil
}
