// Package etcdtest gives tests a real etcd member of one, with mutual TLS, in a
// temporary directory.
package etcdtest

import (
	"context"
	"fmt"
	"net"
	"os"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"roseau/internal/base/ids"
	"roseau/internal/driver/etcd"
	"roseau/internal/pki"
)

// Member is a running member and a client of it; both end with the test.
type Member struct {
	Server *etcd.Server
	Client *clientv3.Client
	Config etcd.Config
}

// New starts a member on a loopback address that depends on the process and n,
// so that tests of several packages run side by side.
func New(t testing.TB, n int) *Member {
	t.Helper()
	dir, err := os.MkdirTemp("", "rs")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	pid := os.Getpid()
	addr := fmt.Sprintf("127.%d.%d.%d", 128+pid>>8&0x3f, pid&0xff, n)
	node, now := ids.New(), time.Now()
	ca, err := pki.NewCA(ids.New(), now)
	if err != nil {
		t.Fatal(err)
	}
	key, csr, err := pki.NewRequest("test")
	if err != nil {
		t.Fatal(err)
	}
	cert, err := ca.SignNode(csr, node, []net.IP{net.ParseIP(addr)}, now)
	if err != nil {
		t.Fatal(err)
	}
	if err := (pki.Files{CA: ca.CertPEM(), Cert: cert, Key: key}).Write(dir + "/pki"); err != nil {
		t.Fatal(err)
	}
	id, err := pki.Load(dir + "/pki")
	if err != nil {
		t.Fatal(err)
	}
	m := &Member{Config: etcd.Config{Name: node.String(), New: true, Identity: id, Dir: dir + "/etcd", Addresses: []string{addr}, Cluster: ids.New(), LogFile: dir + "/log"}}
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	if m.Server, err = etcd.Start(ctx, m.Config); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.Server.Close() })
	if m.Client, err = etcd.Dial(id, []string{etcd.ClientURL(addr)}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.Client.Close() })
	return m
}
