package pki

import (
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"path/filepath"

	"roseau/internal/base/errs"
	"roseau/internal/base/ids"
)

// Identity is who this process is: a certificate, its key and the authority
// that everybody else must show a certificate of.
type Identity struct {
	dir  string // "" if it does not come from a directory
	peer Peer
	cert tls.Certificate
	ca   *x509.Certificate
	pool *x509.CertPool
}

// Load reads a node's identity from its PKI directory. It fails with NotFound
// on a node that is in no cluster yet.
func Load(dir string) (*Identity, error) {
	var f Files
	for _, r := range []struct {
		name string
		data *[]byte
	}{{CAFile, &f.CA}, {CertFile, &f.Cert}, {KeyFile, &f.Key}} {
		data, err := readFile(dir, r.name)
		if err != nil {
			return nil, err
		}
		*r.data = data
	}
	id, err := FromFiles(f)
	if err != nil {
		return nil, fmt.Errorf("load identity %s: %w", dir, err)
	}
	id.dir = dir
	return id, nil
}

// FromFiles makes an identity of PEM data, for users' contexts and tests.
func FromFiles(f Files) (*Identity, error) {
	ca, err := parseCert(f.CA)
	if err != nil {
		return nil, fmt.Errorf("ca: %w", err)
	}
	cert, err := tls.X509KeyPair(f.Cert, f.Key)
	if err != nil {
		return nil, errs.New(errs.Invalid, "certificate and key: %w", err)
	}
	if cert.Leaf, err = x509.ParseCertificate(cert.Certificate[0]); err != nil {
		return nil, errs.New(errs.Invalid, "certificate: %w", err)
	}
	peer, err := peerOfCert(cert.Leaf)
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	pool.AddCert(ca)
	return &Identity{peer: peer, cert: cert, ca: ca, pool: pool}, nil
}

// Node returns the node that this identity is, or the zero ID for others.
func (id *Identity) Node() ids.ID { return id.peer.Node }

// Peer returns who this identity is.
func (id *Identity) Peer() Peer { return id.peer }

// Fingerprint returns the SHA-256 of the cluster authority's certificate.
func (id *Identity) Fingerprint() string { return FingerprintOf(id.ca) }

// Key returns the certificate's key as one that secrets are sealed for.
func (id *Identity) Key() (*ecdh.PrivateKey, error) {
	key, ok := id.cert.PrivateKey.(*ecdsa.PrivateKey)
	if !ok {
		return nil, errs.New(errs.Invalid, "take the certificate's key: want ECDSA, have %T", id.cert.PrivateKey)
	}
	return key.ECDH()
}

// CertPEM returns the certificate.
func (id *Identity) CertPEM() []byte { return encodeCert(id.cert.Leaf.Raw) }

// KeyOfNode returns the key of a node's certificate, if the cluster's authority
// signed it for that node and it is valid; Denied otherwise.
func (id *Identity) KeyOfNode(certPEM []byte, node ids.ID) (*ecdh.PublicKey, error) {
	refuse := func(why any) (*ecdh.PublicKey, error) {
		return nil, errs.New(errs.Denied, "take the key of node %s: %v", node, why)
	}
	cert, err := parseCert(certPEM)
	if err != nil {
		return refuse(err)
	}
	if _, err := cert.Verify(x509.VerifyOptions{Roots: id.pool, DNSName: AnyNodeName}); err != nil {
		return refuse(err)
	}
	p, err := peerOfCert(cert)
	if err != nil {
		return refuse(err)
	}
	if p.Node != node || node.IsZero() {
		return refuse("the certificate is of " + p.String())
	}
	key, ok := cert.PublicKey.(*ecdsa.PublicKey)
	if !ok {
		return refuse("no ECDSA key")
	}
	return key.ECDH()
}

// Files returns the paths of the identity's files, for drivers that read files
// themselves (etcd, QEMU): authority, certificate, key.
func (id *Identity) Files() (ca, cert, key string) {
	return filepath.Join(id.dir, CAFile), filepath.Join(id.dir, CertFile), filepath.Join(id.dir, KeyFile)
}

// ServerTLS is for listeners between nodes: the peer must be a node of the
// cluster. PeerOf tells which.
func (id *Identity) ServerTLS() *tls.Config {
	return id.server(func(p Peer) error {
		if p.Node.IsZero() {
			return errs.New(errs.Denied, "accept %s: only nodes may connect here", p)
		}
		return nil
	})
}

// ServerTLSUsers is for the API: nodes and users of the cluster may connect.
func (id *Identity) ServerTLSUsers() *tls.Config {
	return id.server(func(p Peer) error {
		if !p.Witness.IsZero() {
			return errs.New(errs.Denied, "accept %s: a witness has no business here", p)
		}
		return nil
	})
}

func (id *Identity) server(check func(Peer) error) *tls.Config {
	return &tls.Config{
		MinVersion:             tls.VersionTLS13,
		SessionTicketsDisabled: true, // every connection shows its certificate
		Certificates:           []tls.Certificate{id.cert},
		ClientAuth:             tls.RequireAndVerifyClientCert,
		ClientCAs:              id.pool,
		VerifyConnection:       checkPeer(check),
	}
}

// ClientTLS is for connections to the node peer, at whatever address; the zero
// ID accepts every node of the cluster.
func (id *Identity) ClientTLS(peer ids.ID) *tls.Config {
	return id.clientOf(func(p Peer) error {
		if p.Node.IsZero() || !peer.IsZero() && p.Node != peer {
			return errs.New(errs.Denied, "connect to node %s: %s answered", peer, p)
		}
		return nil
	})
}

// EtcdTLS is for clients of etcd: any member will do, the witness's too.
func (id *Identity) EtcdTLS() *tls.Config {
	return id.clientOf(func(p Peer) error {
		if p.Node.IsZero() && p.Witness.IsZero() {
			return errs.New(errs.Denied, "connect to etcd: %s answered", p)
		}
		return nil
	})
}

func (id *Identity) clientOf(check func(Peer) error) *tls.Config {
	return &tls.Config{
		MinVersion:   tls.VersionTLS13,
		Certificates: []tls.Certificate{id.cert},
		RootCAs:      id.pool,
		// Every node certificate has this name, so Go's own chain and name check
		// stays on; which node it is, VerifyConnection decides.
		ServerName:       AnyNodeName,
		VerifyConnection: checkPeer(check),
	}
}

func checkPeer(check func(Peer) error) func(tls.ConnectionState) error {
	return func(state tls.ConnectionState) error {
		p, err := PeerOf(state)
		if err != nil {
			return err
		}
		return check(p)
	}
}

// JoinTLS is for a node without an identity: it accepts exactly the cluster
// whose authority has the fingerprint (SHA-256, hexadecimal), and shows no
// certificate of its own.
func JoinTLS(fingerprint string) *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13,
		ServerName: joinName,
		// The usual check needs the authority's certificate, which is what the
		// connection is to bring; the check below replaces it in full.
		InsecureSkipVerify: true,
		VerifyConnection: func(state tls.ConnectionState) error {
			return verifyByFingerprint(state.PeerCertificates, fingerprint)
		},
	}
}

func verifyByFingerprint(chain []*x509.Certificate, fingerprint string) error {
	for i, ca := range chain {
		if i == 0 || FingerprintOf(ca) != fingerprint {
			continue
		}
		pool := x509.NewCertPool()
		pool.AddCert(ca)
		if _, err := chain[0].Verify(x509.VerifyOptions{Roots: pool, DNSName: AnyNodeName}); err != nil {
			return errs.New(errs.Denied, "verify the cluster's certificate: %w", err)
		}
		p, err := peerOfCert(chain[0])
		if err != nil || p.Node.IsZero() {
			return errs.New(errs.Denied, "verify the cluster's certificate: not a node's")
		}
		return nil
	}
	return errs.New(errs.Denied, "verify the cluster's certificate: its authority is not the one that the token names").
		WithHint("the address belongs to another cluster, or somebody is in between; make a new token with `roseau cluster token`")
}

// APIServerTLS is for the API's port: as ServerTLSUsers, but for a client that
// asks for the name of joins, which has no certificate yet. It is sent the
// authority's certificate along, so that it can compare the fingerprint; the
// server must offer it nothing but the join (its connection has no
// PeerCertificates).
func (id *Identity) APIServerTLS() *tls.Config {
	users := id.ServerTLSUsers()
	cert := id.cert
	cert.Certificate = append(cert.Certificate[:1:1], id.ca.Raw)
	join := &tls.Config{MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{cert}, SessionTicketsDisabled: true}
	users.GetConfigForClient = func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
		if hello.ServerName == joinName {
			return join, nil
		}
		return nil, nil
	}
	return users
}
