// Package nodeconf has the file that makes a machine a node of a cluster: who it
// is, where it is reached, and where etcd is. It is written at init or join and
// read by every process of the node; without it a machine is in no cluster.
package nodeconf

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"roseau/internal/base/errs"
	"roseau/internal/base/ids"
	"roseau/internal/model"
)

// Config is the content of paths.NodeConfig.
type Config struct {
	Cluster     ids.ID `json:"cluster"`
	ClusterName string `json:"cluster_name"`
	Node        ids.ID `json:"node"`
	Name        string `json:"name"`
	// Addresses lists this node's IP addresses a role, best first. Cluster and
	// storage have at least one each.
	Addresses map[model.NetworkRole][]string `json:"addresses"`
	// Uplinks names the physical interface of each bridged network.
	Uplinks map[string]string `json:"uplinks,omitempty"`
	// Seat says whether this node votes, and as which etcd member.
	Seat Seat `json:"seat"`
	// Endpoints are the nodes that vote to a client of etcd, as driver/etcd's
	// Endpoints last returned them; the daemon keeps them up to date.
	Endpoints []string `json:"endpoints"`
	// Generation is the cluster generation that this node and its disks belong to:
	// `cluster recover` raises it here, an explicit import on the other nodes.
	Generation uint32 `json:"generation"`
	// Recovering is the generation that a recovery under way will have; 0: none.
	Recovering uint32 `json:"recovering,omitempty"`
	// Settling says what the daemon still has to do before the node is a full
	// part of the cluster; nil: nothing. A daemon that died goes on with it.
	Settling *Settling `json:"settling,omitempty"`
}

// Seat is what a machine keeps of its etcd member between starts.
type Seat struct {
	Seated bool `json:"seated"`
	// Member is the id that the data is of; 0: of a member that makes the cluster,
	// before its first start.
	Member uint64 `json:"member,string,omitempty"`
	// Initial has the peer URLs of every member by name, with commas in between, for
	// the first start; nil afterwards, and for the member that makes the cluster.
	Initial map[string]string `json:"initial,omitempty"`
}

// Settling is the second half of an init or a join.
type Settling struct {
	Init  bool   `json:"init,omitempty"` // write the first records of a new cluster
	Token ids.ID `json:"token,omitzero"` // the token of a join, to be marked as used
}

// ClusterAddresses returns the addresses on the cluster network, best first.
func (c *Config) ClusterAddresses() []string { return c.Addresses[model.RoleCluster] }

// ControlAddresses returns the addresses for etcd and the API between nodes, each
// once: those on the cluster network, best first, then those on the storage
// network, which serve when the former is cut.
func (c *Config) ControlAddresses() []string { return ControlAddresses(c.Addresses) }

// ControlAddresses returns the control addresses of a node with these addresses.
func ControlAddresses(m map[model.NetworkRole][]string) []string {
	return addresses(m, model.RoleCluster, model.RoleStorage)
}

// AllAddresses returns every address of the node once, cluster addresses first.
func (c *Config) AllAddresses() []string { return AllAddresses(c.Addresses) }

// AllAddresses returns every address of a node once, cluster addresses first.
func AllAddresses(m map[model.NetworkRole][]string) []string {
	return addresses(m, model.RoleCluster, model.RoleStorage, model.RoleVM)
}

func addresses(m map[model.NetworkRole][]string, roles ...model.NetworkRole) []string {
	seen := map[string]bool{}
	var out []string
	for _, role := range roles {
		for _, a := range m[role] {
			if !seen[a] {
				seen[a] = true
				out = append(out, a)
			}
		}
	}
	return out
}

// Load reads the file. It fails with NotFound on a machine that is in no
// cluster.
func Load(path string) (*Config, error) {
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, errs.New(errs.NotFound, "read node config: this machine is in no cluster").
			WithHint("`roseau cluster init` makes a cluster, `roseau cluster join TOKEN` joins one")
	}
	if err != nil {
		return nil, fmt.Errorf("read node config: %w", err)
	}
	c := new(Config)
	if err := json.Unmarshal(data, c); err != nil {
		return nil, errs.New(errs.Corrupt, "read node config %s: %w", path, err)
	}
	if c.Node.IsZero() || len(c.ClusterAddresses()) == 0 {
		return nil, errs.New(errs.Corrupt, "read node config %s: no node id or no address", path)
	}
	return c, nil
}

// Save replaces the file, durably: it is what makes a join final.
func (c *Config) Save(path string) (err error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return fmt.Errorf("save node config: %w", err)
	}
	data, err := json.MarshalIndent(c, "", "  ")
	if err != nil {
		return fmt.Errorf("save node config: %w", err)
	}
	return WriteFile(path, append(data, '\n'), 0o644)
}

// WriteFile replaces a file durably: content, name and directory are synced.
func WriteFile(path string, data []byte, mode os.FileMode) error {
	tmp := path + ".new"
	f, err := os.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, mode)
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	_, err = f.Write(data)
	if err = errors.Join(err, f.Chmod(mode), f.Sync(), f.Close()); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	if err := os.Rename(tmp, path); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	d, err := os.Open(filepath.Dir(path))
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return errors.Join(d.Sync(), d.Close())
}
