// Package pki has the identities of a cluster: one certificate authority, a
// certificate for each node and each user, and the TLS configurations made of
// them. Everything on a network speaks TLS 1.3 with certificates on both sides.
//
// A peer is who its URI says (roseau://node/<uuid>, roseau://user/<name>), never
// which address it has: addresses move, and several nodes of a lab share one
// machine. The DNS name "node.roseau" stands in node certificates only; it is
// what etcd, which knows no URIs, checks so that a user's certificate opens
// neither its client nor its peer port.
package pki

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"roseau/internal/base/errs"
	"roseau/internal/base/ids"
)

// Names and lifetimes.
const (
	AnyNodeName = "node.roseau" // DNS SAN of every node certificate
	joinName    = "join.roseau" // what a client without a certificate asks for; in no certificate
	caYears     = 10
	nodeYears   = 10 // ends with the CA; a node is removed from the cluster, not waited for
	userYears   = 2
)

// Files of a PKI directory.
const (
	CAFile      = "ca.crt"
	CAKeyFile   = "ca.key" // voters only
	CertFile    = "node.crt"
	KeyFile     = "node.key"
	uriScheme   = "roseau"
	hostOfNodes = "node"
	hostOfUsers = "user"
	hostOfWits  = "witness"
)

// Peer says who is at the other end of a TLS connection: exactly one of the
// fields is set. A witness is admitted by etcd alone.
type Peer struct {
	Node    ids.ID
	Witness ids.ID
	User    string
}

// String returns "node <id>", "witness <id>" or "user <name>".
func (p Peer) String() string {
	if p.User != "" {
		return "user " + p.User
	}
	if !p.Witness.IsZero() {
		return "witness " + p.Witness.String()
	}
	return "node " + p.Node.String()
}

// PeerOf returns who a verified connection's peer is.
func PeerOf(state tls.ConnectionState) (Peer, error) {
	if len(state.PeerCertificates) == 0 {
		return Peer{}, errs.New(errs.Denied, "identify peer: no certificate")
	}
	return peerOfCert(state.PeerCertificates[0])
}

func peerOfCert(cert *x509.Certificate) (Peer, error) {
	if len(cert.URIs) != 1 || cert.URIs[0].Scheme != uriScheme {
		return Peer{}, errs.New(errs.Denied, "identify peer %q: certificate without a roseau:// name", cert.Subject.CommonName)
	}
	u := cert.URIs[0]
	name := strings.TrimPrefix(u.Path, "/")
	switch u.Host {
	case hostOfNodes, hostOfWits:
		id, err := ids.Parse(name)
		if err != nil {
			return Peer{}, errs.New(errs.Denied, "identify peer %q: %w", u, err)
		}
		if u.Host == hostOfWits {
			return Peer{Witness: id}, nil
		}
		return Peer{Node: id}, nil
	case hostOfUsers:
		if name != "" {
			return Peer{User: name}, nil
		}
	}
	return Peer{}, errs.New(errs.Denied, "identify peer %q: neither a node, a witness nor a user", u)
}

func nodeURI(id ids.ID) *url.URL {
	return &url.URL{Scheme: uriScheme, Host: hostOfNodes, Path: "/" + id.String()}
}

func witnessURI(id ids.ID) *url.URL {
	return &url.URL{Scheme: uriScheme, Host: hostOfWits, Path: "/" + id.String()}
}

func userURI(name string) *url.URL {
	return &url.URL{Scheme: uriScheme, Host: hostOfUsers, Path: "/" + name}
}

// FingerprintOf returns the SHA-256 of a certificate's DER form in lower-case
// hexadecimal digits.
func FingerprintOf(cert *x509.Certificate) string {
	sum := sha256.Sum256(cert.Raw)
	return hex.EncodeToString(sum[:])
}

// CA signs certificates. Voters hold its key.
type CA struct {
	cert *x509.Certificate
	pem  []byte
	key  *ecdsa.PrivateKey
}

// NewCA makes the authority of a new cluster: ECDSA P-256, ten years.
func NewCA(cluster ids.ID, now time.Time) (*CA, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make ca key: %w", err)
	}
	tmpl := &x509.Certificate{
		SerialNumber:          serial(),
		Subject:               pkix.Name{CommonName: "roseau cluster " + cluster.String()},
		NotBefore:             now.Add(-time.Hour), // nodes whose clocks differ a little
		NotAfter:              now.AddDate(caYears, 0, 0),
		IsCA:                  true,
		BasicConstraintsValid: true,
		MaxPathLenZero:        true,
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	if err != nil {
		return nil, fmt.Errorf("make ca certificate: %w", err)
	}
	return parseCA(encodeCert(der), key)
}

func parseCA(certPEM []byte, key *ecdsa.PrivateKey) (*CA, error) {
	cert, err := parseCert(certPEM)
	if err != nil {
		return nil, err
	}
	return &CA{cert: cert, pem: certPEM, key: key}, nil
}

// LoadCA reads the authority from a PKI directory. It fails with NotFound on a
// node that does not hold the key.
func LoadCA(dir string) (*CA, error) {
	certPEM, err := readFile(dir, CAFile)
	if err != nil {
		return nil, err
	}
	keyPEM, err := readFile(dir, CAKeyFile)
	if err != nil {
		return nil, err
	}
	key, err := parseKey(keyPEM)
	if err != nil {
		return nil, fmt.Errorf("read ca key: %w", err)
	}
	return parseCA(certPEM, key)
}

// CertPEM returns the authority's certificate.
func (ca *CA) CertPEM() []byte { return ca.pem }

// KeyPEM returns the authority's private key: it goes to voters over TLS, and
// nowhere else.
func (ca *CA) KeyPEM() ([]byte, error) { return encodeKey(ca.key) }

// Fingerprint returns the SHA-256 of the certificate.
func (ca *CA) Fingerprint() string { return FingerprintOf(ca.cert) }

// SignNode signs the key of a certificate request as the node's. Of the request
// only the key is taken: names and addresses are what the caller verified.
func (ca *CA) SignNode(csrPEM []byte, node ids.ID, addrs []net.IP, now time.Time) ([]byte, error) {
	return ca.signMachine(csrPEM, node, nodeURI(node), addrs, now)
}

// SignWitness signs the key of a certificate request as the witness's. Etcd,
// which looks at the name alone, takes it for one of its members; everything
// else refuses it by its URI.
func (ca *CA) SignWitness(csrPEM []byte, witness ids.ID, addrs []net.IP, now time.Time) ([]byte, error) {
	return ca.signMachine(csrPEM, witness, witnessURI(witness), addrs, now)
}

func (ca *CA) signMachine(csrPEM []byte, id ids.ID, uri *url.URL, addrs []net.IP, now time.Time) ([]byte, error) {
	tmpl := &x509.Certificate{
		Subject:     pkix.Name{CommonName: id.String()},
		URIs:        []*url.URL{uri},
		DNSNames:    []string{id.String() + "." + AnyNodeName, AnyNodeName, "localhost"},
		IPAddresses: append([]net.IP{net.IPv4(127, 0, 0, 1), net.IPv6loopback}, addrs...),
		NotAfter:    now.AddDate(nodeYears, 0, 0),
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	return ca.sign(csrPEM, tmpl, now)
}

// SignUser signs the key of a certificate request as a user's of the API.
func (ca *CA) SignUser(csrPEM []byte, name string, now time.Time) ([]byte, error) {
	tmpl := &x509.Certificate{
		Subject:     pkix.Name{CommonName: name},
		URIs:        []*url.URL{userURI(name)},
		NotAfter:    now.AddDate(userYears, 0, 0),
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}
	return ca.sign(csrPEM, tmpl, now)
}

func (ca *CA) sign(csrPEM []byte, tmpl *x509.Certificate, now time.Time) ([]byte, error) {
	block, _ := pem.Decode(csrPEM)
	if block == nil || block.Type != "CERTIFICATE REQUEST" {
		return nil, errs.New(errs.Invalid, "sign certificate: request is not PEM")
	}
	csr, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil {
		return nil, errs.New(errs.Invalid, "sign certificate: %w", err)
	}
	if err := csr.CheckSignature(); err != nil {
		return nil, errs.New(errs.Invalid, "sign certificate: %w", err)
	}
	tmpl.SerialNumber = serial()
	tmpl.NotBefore = now.Add(-time.Hour)
	if tmpl.NotAfter.After(ca.cert.NotAfter) {
		tmpl.NotAfter = ca.cert.NotAfter
	}
	tmpl.KeyUsage = x509.KeyUsageDigitalSignature
	tmpl.BasicConstraintsValid = true
	der, err := x509.CreateCertificate(rand.Reader, tmpl, ca.cert, csr.PublicKey, ca.key)
	if err != nil {
		return nil, fmt.Errorf("sign certificate: %w", err)
	}
	return encodeCert(der), nil
}

// NewRequest makes a private key and a certificate request for it, both PEM.
func NewRequest(commonName string) (keyPEM, csrPEM []byte, err error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, fmt.Errorf("make key: %w", err)
	}
	tmpl := &x509.CertificateRequest{Subject: pkix.Name{CommonName: commonName}}
	der, err := x509.CreateCertificateRequest(rand.Reader, tmpl, key)
	if err != nil {
		return nil, nil, fmt.Errorf("make certificate request: %w", err)
	}
	if keyPEM, err = encodeKey(key); err != nil {
		return nil, nil, err
	}
	return keyPEM, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}), nil
}

// Files is the content of a PKI directory. CAKey is nil on nodes that do not
// vote.
type Files struct {
	CA, CAKey, Cert, Key []byte
}

// Write stores f in dir, keys readable by root alone. Each file is replaced
// whole, and synced before the next.
func (f Files) Write(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("write pki: %w", err)
	}
	for _, w := range []struct {
		name string
		data []byte
		mode os.FileMode
	}{{CAFile, f.CA, 0o644}, {CAKeyFile, f.CAKey, 0o600}, {KeyFile, f.Key, 0o600}, {CertFile, f.Cert, 0o644}} {
		if w.data == nil {
			continue
		}
		if err := writeFile(filepath.Join(dir, w.name), w.data, w.mode); err != nil {
			return fmt.Errorf("write pki: %w", err)
		}
	}
	return nil
}

func writeFile(path string, data []byte, mode os.FileMode) (err error) {
	tmp := path + ".new"
	f, err := os.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, mode)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	err = errors.Join(err, f.Chmod(mode), f.Sync(), f.Close())
	if err != nil {
		return err
	}
	return os.Rename(tmp, path)
}

func readFile(dir, name string) ([]byte, error) {
	data, err := os.ReadFile(filepath.Join(dir, name))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, errs.New(errs.NotFound, "read pki: %w", err)
	}
	if err != nil {
		return nil, fmt.Errorf("read pki: %w", err)
	}
	return data, nil
}

func encodeCert(der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}

func encodeKey(key *ecdsa.PrivateKey) ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("encode key: %w", err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), nil
}

func parseKey(data []byte) (*ecdsa.PrivateKey, error) {
	block, _ := pem.Decode(data)
	if block == nil {
		return nil, errs.New(errs.Invalid, "parse key: not PEM")
	}
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, errs.New(errs.Invalid, "parse key: %w", err)
	}
	ec, ok := key.(*ecdsa.PrivateKey)
	if !ok {
		return nil, errs.New(errs.Invalid, "parse key: want ECDSA, have %T", key)
	}
	return ec, nil
}

func parseCert(data []byte) (*x509.Certificate, error) {
	block, _ := pem.Decode(data)
	if block == nil || block.Type != "CERTIFICATE" {
		return nil, errs.New(errs.Invalid, "parse certificate: not PEM")
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return nil, errs.New(errs.Invalid, "parse certificate: %w", err)
	}
	return cert, nil
}

// ParseCert reads one PEM certificate.
func ParseCert(data []byte) (*x509.Certificate, error) { return parseCert(data) }

func serial() *big.Int {
	n, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 126))
	if err != nil {
		panic("pki: read random: " + err.Error()) // never fails since Go 1.24
	}
	return n
}
