package witness

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"roseau/internal/base/errs"
	"roseau/internal/base/ids"
	"roseau/internal/nodeconf"
)

// Slots is how many etcd members a witness has at most.
const Slots = 2

// Config is the content of witness.json: who the witness is and what it keeps
// between starts.
type Config struct {
	Cluster     ids.ID               `json:"cluster"`
	ClusterName string               `json:"cluster_name"`
	Witness     ids.ID               `json:"witness"`
	Name        string               `json:"name"`
	Address     string               `json:"address"`
	Port        int                  `json:"port"` // the first of its range
	Endpoints   []string             `json:"endpoints"`
	Seats       [Slots]nodeconf.Seat `json:"seats"`
	Count       Count                `json:"count"`
	// Token is that of the join, until it is marked as used.
	Token ids.ID `json:"token,omitzero"`
}

// Count tells an older state of the witness from a newer one.
type Count struct {
	Starts uint64 `json:"starts"`
	Ticks  uint64 `json:"ticks"` // one each 10 s of running
}

// Behind reports that own, counted up for this start already, is older than
// what the cluster remembers: the witness's data were put back, and its log has
// forgotten votes that it gave.
func Behind(own, cluster Count) bool {
	return own.Starts <= cluster.Starts || own.Ticks < cluster.Ticks
}

func configFile(dir string) string { return filepath.Join(dir, "witness.json") }

// load reads the config; NotFound: this witness is in no cluster.
func load(dir string) (*Config, error) {
	data, err := os.ReadFile(configFile(dir))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, errs.New(errs.NotFound, "read witness config: the witness in %s is in no cluster", dir).
			WithHint("`roseau witness add` on a node of the cluster prints the command that lets it join")
	}
	if err != nil {
		return nil, fmt.Errorf("read witness config: %w", err)
	}
	c := new(Config)
	if err := json.Unmarshal(data, c); err != nil {
		return nil, errs.New(errs.Corrupt, "read witness config %s: %w", configFile(dir), err)
	}
	if c.Witness.IsZero() || c.Address == "" || len(c.Endpoints) == 0 {
		return nil, errs.New(errs.Corrupt, "read witness config %s: no id, address or endpoint", configFile(dir))
	}
	return c, nil
}

func (c *Config) save(dir string) error {
	data, err := json.MarshalIndent(c, "", "  ")
	if err != nil {
		return fmt.Errorf("save witness config: %w", err)
	}
	return nodeconf.WriteFile(configFile(dir), append(data, '\n'), 0o600)
}
