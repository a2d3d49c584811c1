package pki

import (
	"crypto/tls"
	"errors"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"roseau/internal/base/errs"
	"roseau/internal/base/ids"
)

var now = time.Now()

func newCA(t *testing.T) *CA {
	t.Helper()
	ca, err := NewCA(ids.New(), now)
	if err != nil {
		t.Fatal(err)
	}
	return ca
}

// identity makes an identity of ca: a node's if user is empty.
func identity(t *testing.T, ca *CA, node ids.ID, user string) (*Identity, Files) {
	t.Helper()
	key, csr, err := NewRequest("x")
	if err != nil {
		t.Fatal(err)
	}
	var cert []byte
	if user == "" {
		cert, err = ca.SignNode(csr, node, []net.IP{net.IPv4(10, 0, 0, 1)}, now)
	} else {
		cert, err = ca.SignUser(csr, user, now)
	}
	if err != nil {
		t.Fatal(err)
	}
	f := Files{CA: ca.CertPEM(), Cert: cert, Key: key}
	id, err := FromFiles(f)
	if err != nil {
		t.Fatal(err)
	}
	return id, f
}

// handshake connects two configurations and returns what each side says.
func handshake(t *testing.T, server, client *tls.Config) (peer Peer, serr, cerr error) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	done := make(chan error, 1)
	go func() {
		c, err := l.Accept()
		if err != nil {
			done <- err
			return
		}
		defer c.Close()
		s := tls.Server(c, server)
		if err = s.Handshake(); err == nil {
			if len(s.ConnectionState().PeerCertificates) > 0 {
				peer, err = PeerOf(s.ConnectionState())
			}
			s.Write([]byte("x"))
		}
		done <- err
	}()
	c, err := tls.Dial("tcp", l.Addr().String(), client)
	if err == nil {
		// In TLS 1.3 the server's refusal comes after the client's handshake.
		_, err = c.Read(make([]byte, 1))
		c.Close()
	}
	serr = <-done
	return peer, serr, err
}

func TestWhoMayTalkToWhom(t *testing.T) {
	ca, other := newCA(t), newCA(t)
	a, b := ids.New(), ids.New()
	na, _ := identity(t, ca, a, "")
	nb, _ := identity(t, ca, b, "")
	ann, _ := identity(t, ca, ids.ID{}, "ann")
	stranger, _ := identity(t, other, b, "")
	for _, c := range []struct {
		name           string
		server, client *tls.Config
		ok             bool
		peer           Peer
	}{
		{"node to the node it means", na.ServerTLS(), nb.ClientTLS(a), true, Peer{Node: b}},
		{"node to any node", na.ServerTLS(), nb.ClientTLS(ids.ID{}), true, Peer{Node: b}},
		{"node to another node than it means", na.ServerTLS(), nb.ClientTLS(b), false, Peer{}},
		{"user where only nodes may connect", na.ServerTLS(), ann.ClientTLS(a), false, Peer{}},
		{"user to the API", na.APIServerTLS(), ann.ClientTLS(a), true, Peer{User: "ann"}},
		{"node of another cluster", na.ServerTLS(), stranger.ClientTLS(a), false, Peer{}},
		{"nobody", na.APIServerTLS(), &tls.Config{InsecureSkipVerify: true}, false, Peer{}},
		{"TLS 1.2", na.APIServerTLS(), &tls.Config{InsecureSkipVerify: true, MaxVersion: tls.VersionTLS12}, false, Peer{}},
		{"a user's certificate as server", ann.ServerTLS(), nb.ClientTLS(ids.ID{}), false, Peer{}},
		{"join with the right fingerprint", na.APIServerTLS(), JoinTLS(ca.Fingerprint()), true, Peer{}},
		{"join with another fingerprint", na.APIServerTLS(), JoinTLS(other.Fingerprint()), false, Peer{}},
	} {
		peer, serr, cerr := handshake(t, c.server, c.client)
		if ok := serr == nil && cerr == nil; ok != c.ok || ok && peer != c.peer {
			t.Errorf("%s: server %v, client %v, peer %v", c.name, serr, cerr, peer)
		}
	}
	if _, _, cerr := handshake(t, na.APIServerTLS(), JoinTLS(other.Fingerprint())); !errors.Is(cerr, errs.Denied) || errs.Hint(cerr) == "" {
		t.Errorf("wrong fingerprint: %v", cerr)
	}
}

func TestFilesOnDisk(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "pki")
	ca := newCA(t)
	node := ids.New()
	_, f := identity(t, ca, node, "")
	if _, err := Load(dir); !errors.Is(err, errs.NotFound) {
		t.Fatalf("load of nothing: %v", err)
	}
	if err := f.Write(dir); err != nil {
		t.Fatal(err)
	}
	if _, err := LoadCA(dir); !errors.Is(err, errs.NotFound) {
		t.Fatalf("a node without the key has it: %v", err)
	}
	f.CAKey, _ = ca.KeyPEM()
	if err := f.Write(dir); err != nil {
		t.Fatal(err)
	}
	id, err := Load(dir)
	if err != nil || id.Node() != node || id.Fingerprint() != ca.Fingerprint() {
		t.Fatalf("loaded %v, %v", id, err)
	}
	again, err := LoadCA(dir)
	if err != nil || again.Fingerprint() != ca.Fingerprint() {
		t.Fatalf("loaded ca %v, %v", again, err)
	}
	for _, name := range []string{KeyFile, CAKeyFile} {
		if st, err := os.Stat(filepath.Join(dir, name)); err != nil || st.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v", name, st.Mode(), err)
		}
	}
}

func TestSignTakesOnlyTheKey(t *testing.T) {
	ca := newCA(t)
	for _, csr := range []string{"", "x", "-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----\n", string(ca.CertPEM())} {
		if _, err := ca.SignNode([]byte(csr), ids.New(), nil, now); !errors.Is(err, errs.Invalid) {
			t.Errorf("request %.30q: %v", csr, err)
		}
	}
	_, csr, err := NewRequest(ids.New().String()) // asks for another node's name
	if err != nil {
		t.Fatal(err)
	}
	mine := ids.New()
	pemCert, err := ca.SignNode(csr, mine, nil, now)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := ParseCert(pemCert)
	if err != nil || cert.Subject.CommonName != mine.String() || cert.URIs[0].String() != "roseau://node/"+mine.String() || cert.IsCA {
		t.Errorf("signed %+v, %v", cert, err)
	}
	if cert.NotAfter.After(ca.cert.NotAfter) {
		t.Error("a node's certificate outlives its authority")
	}
}

func FuzzCSR(f *testing.F) {
	_, csr, err := NewRequest("x")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(csr)
	f.Add([]byte("-----BEGIN CERTIFICATE REQUEST-----\n-----END CERTIFICATE REQUEST-----\n"))
	ca, err := NewCA(ids.New(), now)
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, csr []byte) {
		node := ids.New()
		out, err := ca.SignNode(csr, node, nil, now)
		if err != nil {
			return
		}
		cert, err := ParseCert(out)
		if err != nil || cert.Subject.CommonName != node.String() || cert.IsCA {
			t.Fatalf("signed %v, %v", cert, err)
		}
	})
}
