package client

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"net/url"
	"os"
	"path/filepath"

	"roseau/internal/base/errs"
	"roseau/internal/pki"
)

// Context says how to reach one cluster and as whom.
type Context struct {
	// Addresses of nodes: "host:port", tried in turn.
	Addresses []string `json:"addresses"`
	// CA, Cert and Key are PEM.
	CA   string `json:"ca"`
	Cert string `json:"cert"`
	Key  string `json:"key"`
	// Origin says who made the context ("lab lab"), so that it can be taken
	// away with what it leads to.
	Origin string `json:"origin,omitempty"`
}

// Contexts is the content of the contexts file.
type Contexts struct {
	Current  string             `json:"current,omitempty"`
	Contexts map[string]Context `json:"contexts"`
}

// ContextsFile returns the path of the contexts file of the person who runs
// this: ~/.config/roseau/contexts.json.
func ContextsFile() (string, error) {
	dir, err := os.UserConfigDir()
	if err != nil {
		return "", errs.New(errs.Invalid, "find contexts: %w", err)
	}
	return filepath.Join(dir, "roseau", "contexts.json"), nil
}

// LoadContexts reads the contexts file; one that does not exist is empty.
func LoadContexts() (*Contexts, error) {
	cs := &Contexts{Contexts: map[string]Context{}}
	path, err := ContextsFile()
	if err != nil {
		return nil, err
	}
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return cs, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read contexts: %w", err)
	}
	if err := json.Unmarshal(data, cs); err != nil {
		return nil, errs.New(errs.Invalid, "read contexts %s: %w", path, err)
	}
	if cs.Contexts == nil {
		cs.Contexts = map[string]Context{}
	}
	return cs, nil
}

// Save replaces the contexts file; it holds keys and is readable by its owner
// alone.
func (cs *Contexts) Save() error {
	path, err := ContextsFile()
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return fmt.Errorf("save contexts: %w", err)
	}
	data, err := json.MarshalIndent(cs, "", "  ")
	if err != nil {
		return fmt.Errorf("save contexts: %w", err)
	}
	tmp := path + ".new"
	if err := os.WriteFile(tmp, append(data, '\n'), 0o600); err != nil {
		return fmt.Errorf("save contexts: %w", err)
	}
	if err := os.Rename(tmp, path); err != nil {
		return fmt.Errorf("save contexts: %w", err)
	}
	return nil
}

// Client returns a client of the named context.
func (cs *Contexts) Client(name string) (*Client, error) {
	c, ok := cs.Contexts[name]
	if !ok {
		return nil, errs.New(errs.NotFound, "find context %q: not found", name)
	}
	id, err := pki.FromFiles(pki.Files{CA: []byte(c.CA), Cert: []byte(c.Cert), Key: []byte(c.Key)})
	if err != nil {
		return nil, fmt.Errorf("use context %s: %w", name, err)
	}
	if len(c.Addresses) == 0 {
		return nil, errs.New(errs.Invalid, "use context %s: no addresses", name)
	}
	return Remote(id, c.Addresses), nil
}

// NewContext has a certificate for user signed by the cluster that c talks to,
// which must be a voter's, and returns the context for it. addresses replace the
// node's own ("127.0.0.1:17443" for a forwarded port); nil keeps them.
func NewContext(ctx context.Context, c *Client, user string, addresses []string) (Context, error) {
	key, csr, err := pki.NewRequest(user)
	if err != nil {
		return Context{}, err
	}
	var out struct {
		CA        string   `json:"ca"`
		Cert      string   `json:"cert"`
		Addresses []string `json:"addresses"`
	}
	in := map[string]string{"csr": string(csr)}
	if _, err := c.Do(ctx, http.MethodPost, "/v1/users/"+url.PathEscape(user)+"/certificate", in, &out); err != nil {
		return Context{}, fmt.Errorf("make context for user %s: %w", user, err)
	}
	if addresses == nil {
		addresses = out.Addresses
	}
	return Context{Addresses: addresses, CA: out.CA, Cert: out.Cert, Key: string(key)}, nil
}
