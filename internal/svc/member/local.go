package member

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"roseau/internal/base/clock"
	"roseau/internal/base/errs"
	"roseau/internal/base/ids"
	"roseau/internal/base/paths"
	"roseau/internal/client"
	"roseau/internal/driver/etcd"
	"roseau/internal/model"
	"roseau/internal/nodeconf"
	"roseau/internal/pki"
)

// JoinPath is where a voter takes joins.
const JoinPath = "/v1/join"

const joinTimeout = 60 * time.Second

// InitRequest makes a new cluster of this machine.
type InitRequest struct {
	ClusterName string `json:"cluster_name,omitempty" maxLength:"63" doc:"name of the cluster; default roseau"`
	NodeRequest
}

// LocalJoinRequest makes this machine join the cluster of a token.
type LocalJoinRequest struct {
	Token string `json:"token" doc:"the text that 'roseau cluster token' printed"`
	NodeRequest
}

// Init is the first half of making a cluster: authority, certificate and node
// config are written; the daemon does the rest (Settle).
func Init(req InitRequest, clk clock.Clock) (*nodeconf.Config, error) {
	if req.ClusterName == "" {
		req.ClusterName = "roseau"
	}
	if err := model.CheckName("clusters", req.ClusterName); err != nil {
		return nil, err
	}
	if err := checkLocal(&req.NodeRequest); err != nil {
		return nil, fmt.Errorf("init cluster: %w", err)
	}
	cluster, node, now := ids.New(), ids.New(), clk.Wall()
	ca, err := pki.NewCA(cluster, now)
	if err != nil {
		return nil, fmt.Errorf("init cluster: %w", err)
	}
	key, csr, err := pki.NewRequest(node.String())
	if err != nil {
		return nil, fmt.Errorf("init cluster: %w", err)
	}
	cert, err := ca.SignNode(csr, node, req.ips(), now)
	if err != nil {
		return nil, fmt.Errorf("init cluster: %w", err)
	}
	caKey, err := ca.KeyPEM()
	if err != nil {
		return nil, fmt.Errorf("init cluster: %w", err)
	}
	conf := &nodeconf.Config{Cluster: cluster, ClusterName: req.ClusterName, Node: node, Name: req.Name,
		Addresses: req.Addresses, Uplinks: req.Uplinks, Seat: nodeconf.Seat{Seated: true},
		Endpoints: []string{etcd.ClientURL(req.Addresses[model.RoleCluster][0])},
		Settling:  &nodeconf.Settling{Init: true}}
	return conf, writeNode(conf, pki.Files{CA: ca.CertPEM(), CAKey: caKey, Cert: cert, Key: key})
}

func checkLocal(req *NodeRequest) error {
	if _, err := nodeconf.Load(paths.NodeConfig); !errors.Is(err, errs.NotFound) {
		if err != nil {
			return err
		}
		return errs.New(errs.Conflict, "this machine is in a cluster already").WithHint("`roseau cluster status` shows it")
	}
	own, err := ownAddresses()
	if err != nil {
		return err
	}
	return req.check(own)
}

// writeNode makes this machine a node. The config comes last: without it the
// other files mean nothing and are replaced by the next attempt.
func writeNode(conf *nodeconf.Config, files pki.Files) error {
	// Data of an attempt that never became a node: no config, no vote.
	if err := os.RemoveAll(paths.Etcd); err != nil {
		return fmt.Errorf("remove old etcd data: %w", err)
	}
	if files.CAKey == nil {
		if err := os.Remove(filepath.Join(paths.PKI, pki.CAKeyFile)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("remove old key: %w", err)
		}
	}
	if err := files.Write(paths.PKI); err != nil {
		return err
	}
	return conf.Save(paths.NodeConfig)
}

// pendingJoin is kept between attempts, so that a join that broke goes on as the
// same node.
type pendingJoin struct {
	Cluster ids.ID `json:"cluster"`
	Node    ids.ID `json:"node"`
	Key     string `json:"key"` // PEM
	CSR     string `json:"csr"` // PEM
}

func pendingFile() string { return filepath.Join(paths.State, "join.json") }

func loadPending(cluster ids.ID) (*pendingJoin, error) {
	p := new(pendingJoin)
	data, err := os.ReadFile(pendingFile())
	if err == nil && json.Unmarshal(data, p) == nil && p.Cluster == cluster && p.Key != "" {
		return p, nil
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("read pending join: %w", err)
	}
	node := ids.New()
	key, csr, err := pki.NewRequest(node.String())
	if err != nil {
		return nil, err
	}
	p = &pendingJoin{Cluster: cluster, Node: node, Key: string(key), CSR: string(csr)}
	if data, err = json.Marshal(p); err != nil {
		return nil, fmt.Errorf("write pending join: %w", err)
	}
	if err := os.MkdirAll(paths.State, 0o755); err != nil {
		return nil, fmt.Errorf("write pending join: %w", err)
	}
	return p, nodeconf.WriteFile(pendingFile(), data, 0o600)
}

// Join is the first half of joining, on the machine that joins.
func Join(ctx context.Context, req LocalJoinRequest) (*nodeconf.Config, error) {
	ctx, cancel := context.WithTimeout(ctx, joinTimeout)
	defer cancel()
	inv, err := ParseInvitation(req.Token)
	if err != nil {
		return nil, err
	}
	if err := checkLocal(&req.NodeRequest); err != nil {
		return nil, fmt.Errorf("join cluster: %w", err)
	}
	pending, err := loadPending(inv.Cluster)
	if err != nil {
		return nil, fmt.Errorf("join cluster: %w", err)
	}
	if inv.Witness {
		return nil, errs.New(errs.Invalid, "join cluster: the token is for a witness").WithHint("use it with `roseau witness run`; for a node: `roseau cluster token`")
	}
	ans, err := AskToJoin(ctx, inv, JoinRequest{Token: inv.Token, Secret: inv.Secret, Node: pending.Node, CSR: pending.CSR, NodeRequest: req.NodeRequest})
	if err != nil {
		return nil, err
	}
	if err := CheckAnswer(inv, ans, pending.Node); err != nil {
		return nil, err
	}
	files := pki.Files{CA: []byte(ans.CA), Cert: []byte(ans.Cert), Key: []byte(pending.Key)}
	conf := &nodeconf.Config{Cluster: inv.Cluster, ClusterName: ans.ClusterName, Node: pending.Node, Name: req.Name,
		Addresses: req.Addresses, Uplinks: req.Uplinks, Endpoints: ans.Endpoints, Settling: &nodeconf.Settling{Token: inv.Token}}
	if err := writeNode(conf, files); err != nil {
		return nil, fmt.Errorf("join cluster: %w", err)
	}
	os.Remove(pendingFile()) // of no use any more; harmless if it stays
	return conf, nil
}

// CheckAnswer trusts nothing but the fingerprint in the token.
func CheckAnswer(inv Invitation, ans *JoinAnswer, node ids.ID) error {
	ca, err := pki.ParseCert([]byte(ans.CA))
	if err != nil {
		return fmt.Errorf("join cluster: answer: %w", err)
	}
	if pki.FingerprintOf(ca) != inv.Fingerprint || ans.Cluster != inv.Cluster {
		return errs.New(errs.Denied, "join cluster: the answer is not from the cluster that the token names")
	}
	cert, err := pki.ParseCert([]byte(ans.Cert))
	if err != nil {
		return fmt.Errorf("join cluster: answer: %w", err)
	}
	if cert.Subject.CommonName != node.String() || cert.CheckSignatureFrom(ca) != nil {
		return errs.New(errs.Denied, "join cluster: the certificate in the answer is not this machine's")
	}
	if len(ans.Endpoints) == 0 {
		return errs.New(errs.Invalid, "join cluster: the answer names no etcd member")
	}
	return nil
}

// AskToJoin sends the request to the voters in turn, until one answers.
func AskToJoin(ctx context.Context, inv Invitation, req JoinRequest) (*JoinAnswer, error) {
	body, err := json.Marshal(req)
	if err != nil {
		return nil, fmt.Errorf("join cluster: %w", err)
	}
	tr := &http.Transport{TLSClientConfig: pki.JoinTLS(inv.Fingerprint), DialContext: (&net.Dialer{Timeout: 3 * time.Second}).DialContext, TLSHandshakeTimeout: 5 * time.Second}
	defer tr.CloseIdleConnections()
	hc := &http.Client{Transport: tr}
	var last error
	for _, addr := range inv.Addresses {
		hr, err := http.NewRequestWithContext(ctx, http.MethodPost, "https://"+addr+JoinPath, bytes.NewReader(body))
		if err != nil {
			return nil, errs.New(errs.Invalid, "join cluster: address %q: %w", addr, err)
		}
		hr.Header.Set("Content-Type", "application/json")
		resp, err := hc.Do(hr)
		if err != nil {
			if errors.Is(err, errs.Denied) {
				return nil, fmt.Errorf("join cluster at %s: %w", addr, err)
			}
			last = errs.New(errs.Unavailable, "join cluster at %s: %w", addr, err).
				WithHint("is the address reachable from here? The token names: %v", inv.Addresses)
			continue
		}
		ans, err := readAnswer(resp)
		if err == nil || !errors.Is(err, errs.Unavailable) {
			return ans, err
		}
		last = err
	}
	return nil, last
}

func readAnswer(resp *http.Response) (*JoinAnswer, error) {
	defer resp.Body.Close()
	data, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	if err != nil {
		return nil, errs.New(errs.Unavailable, "join cluster: read answer: %w", err)
	}
	if err := client.ProblemIn(resp.StatusCode, data); err != nil {
		return nil, err
	}
	ans := new(JoinAnswer)
	if err := json.Unmarshal(data, ans); err != nil {
		return nil, errs.New(errs.Invalid, "join cluster: answer: %w", err)
	}
	return ans, nil
}
