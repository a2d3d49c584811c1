package member

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"roseau/internal/api"
	"roseau/internal/base/errs"
	"roseau/internal/base/ids"
	"roseau/internal/base/paths"
	"roseau/internal/driver/etcd"
	"roseau/internal/model"
	"roseau/internal/nodeconf"
	"roseau/internal/pki"
	"roseau/internal/store"
	"roseau/internal/svc/event"
)

const (
	keyPath    = "/v1/authority-key"
	keyTimeout = 10 * time.Second
)

// keyBody is the authority's key on its way from voter to voter.
type keyBody struct {
	Key string `json:"key"` // PEM
}

// voterRoutes are for nodes among themselves.
func (m *Server) voterRoutes(r *api.Router) {
	op := api.Op("get-authority-key", http.MethodGet, keyPath, "Hand the authority's key to a node that is to vote (nodes only)")
	huma.Register(r, op, func(ctx context.Context, _ *struct{}) (*api.Body[keyBody], error) {
		return api.OK(m.giveKey(ctx, api.CallerOf(ctx).Peer.Node))
	})
}

// giveKey hands the key to a node that stands in etcd's list of members: the
// key follows the votes.
func (m *Server) giveKey(ctx context.Context, to ids.ID) (keyBody, error) {
	refuse := func(why string) (keyBody, error) {
		return keyBody{}, errs.New(errs.Denied, "hand out the authority's key: %s", why)
	}
	if to.IsZero() {
		return refuse("only a node may ask")
	}
	n, err := store.GetID[model.Node](ctx, m.Store, to)
	if errors.Is(err, errs.NotFound) || err == nil && n.Deleting {
		return refuse("node " + to.String() + " is not of this cluster")
	}
	if err != nil {
		return keyBody{}, err
	}
	members, err := etcd.Members(ctx, m.Store.Client())
	if err != nil {
		return keyBody{}, err
	}
	if !slices.ContainsFunc(members, func(mem etcd.Member) bool { return ownsMember(n, mem) }) {
		return refuse("node " + n.Name + " does not vote")
	}
	ca, err := pki.LoadCA(paths.PKI)
	if err != nil {
		return keyBody{}, errs.New(errs.Unavailable, "hand out the authority's key: this node does not hold it: %w", err)
	}
	key, err := ca.KeyPEM()
	if err != nil {
		return keyBody{}, err
	}
	m.Events.Emit(event.Info, "node "+n.Name, "was given the authority's key: it is to vote")
	return keyBody{Key: string(key)}, nil
}

// FetchKey gets the authority's key from a node that votes, and stores it. It
// is called before this node votes.
func (m *Server) FetchKey(ctx context.Context) error {
	if _, err := pki.LoadCA(paths.PKI); err == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, keyTimeout)
	defer cancel()
	members, err := etcd.Members(ctx, m.Store.Client())
	if err != nil {
		return err
	}
	last := errs.New(errs.Unavailable, "fetch the authority's key: no other node votes")
	for _, mem := range members {
		if mem.Node.IsZero() || mem.Learner || mem.Node == m.Config.Node {
			continue
		}
		key, err := m.askKey(ctx, mem.Node)
		if err != nil {
			last = errs.New(errs.Unavailable, "fetch the authority's key from node %s: %w", mem.Node, err)
			continue
		}
		path := filepath.Join(paths.PKI, pki.CAKeyFile)
		if err := nodeconf.WriteFile(path, []byte(key), 0o600); err != nil {
			return err
		}
		if _, err := pki.LoadCA(paths.PKI); err != nil {
			return errors.Join(fmt.Errorf("fetch the authority's key: %w", err), os.Remove(path))
		}
		return nil
	}
	return last
}

func (m *Server) askKey(ctx context.Context, node ids.ID) (string, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://"+node.String()+keyPath, nil)
	if err != nil {
		return "", err
	}
	resp, err := (&http.Client{Transport: m.Proxy.Transport(node)}).Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return "", fmt.Errorf("it answers %s", resp.Status)
	}
	var body keyBody
	if err := json.NewDecoder(resp.Body).Decode(&body); err != nil {
		return "", fmt.Errorf("decode answer: %w", err)
	}
	return body.Key, nil
}

// DropKey removes the authority's key from this node, which votes no more.
func DropKey() error {
	err := os.Remove(filepath.Join(paths.PKI, pki.CAKeyFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}
