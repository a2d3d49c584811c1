package lab

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	crand "crypto/rand"

	"roseau/internal/base/clock"
	"roseau/internal/base/errs"
	"roseau/internal/base/ids"
	"roseau/internal/base/paths"
	"roseau/internal/lab/cable"
	"roseau/internal/lab/labclient"
	"roseau/internal/lab/redfish"
	"roseau/internal/unit"
)

// Files of a node's management controller, in the node's directory of the lab.
const (
	bmcPasswordFile = "bmc-password"
	bmcCertFile     = "bmc.pem"
)

const (
	bmcUser     = "lab"
	bmcNetwork  = "cluster"
	bmcPort     = 443
	bmcShutdown = 20 * time.Second // for the units of a node whose power button is pressed
)

// controller is a node's management controller: a Redfish service at an address
// of its own on the cluster switch. It has power while the lab is up.
type controller struct {
	n       *node
	address string
	service *redfish.Service
	server  *http.Server
	served  chan struct{} // closed when server has ended

	mu     sync.Mutex // protects below
	cert   tls.Certificate
	cut    bool
	closed bool
	tasks  sync.WaitGroup // power-ons under way; none begins once closed
}

// newController starts the controller of a node, with the password, certificate
// and UUID that it had in an earlier life of the lab.
func newController(n *node) (c *controller, err error) {
	c = &controller{n: n, address: cable.ControllerAddress(n.number).Addr().String(), served: make(chan struct{})}
	password, err := keep(filepath.Join(n.dir, bmcPasswordFile), crand.Text)
	if err != nil {
		return nil, err
	}
	uuid, err := keep(filepath.Join(n.stateDir(), filepath.Base(paths.LabMachine)), func() string { return ids.New().String() })
	if err != nil {
		return nil, err
	}
	if err := c.loadCertificate(); err != nil {
		return nil, err
	}
	log := n.log.With("bmc", c.address)
	c.service = redfish.New(redfish.Config{User: bmcUser, Password: password, UUID: uuid, Serial: n.lab.spec.Name + "-" + n.name, Address: c.address, Log: log}, c)
	l, err := n.lab.board.ListenAt(bmcNetwork, cable.ControllerAddress(n.number), bmcPort)
	if err != nil {
		return nil, fmt.Errorf("bmc of node %s: %w", n.name, err)
	}
	c.server = &http.Server{Handler: c.service, ReadHeaderTimeout: 10 * time.Second, ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelDebug),
		TLSConfig: &tls.Config{MinVersion: tls.VersionTLS12, GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
			c.mu.Lock()
			defer c.mu.Unlock()
			cert := c.cert
			return &cert, nil
		}}}
	go func() { // ends with close
		defer close(c.served)
		if err := c.server.ServeTLS(l, "", ""); !errors.Is(err, http.ErrServerClosed) {
			log.Error("bmc ended", "err", err)
		}
	}()
	return c, nil
}

// keep returns the line that a file holds, making it if it is not there.
func keep(path string, draw func() string) (string, error) {
	b, err := os.ReadFile(path)
	if err == nil {
		return strings.TrimSpace(string(b)), nil
	}
	if !errors.Is(err, os.ErrNotExist) {
		return "", err
	}
	v := draw()
	return v, os.WriteFile(path, []byte(v+"\n"), 0o600)
}

func (c *controller) certFile() string { return filepath.Join(c.n.dir, bmcCertFile) }

func (c *controller) loadCertificate() error {
	cert, err := tls.LoadX509KeyPair(c.certFile(), c.certFile())
	if errors.Is(err, os.ErrNotExist) {
		return c.renew()
	}
	c.cert = cert
	return err
}

// renew gives the controller another certificate, as a replaced one has.
func (c *controller) renew() error {
	cert, err := redfish.NewCertificate(c.n.name+"-bmc", clock.System{}.Wall())
	if err != nil {
		return err
	}
	key, err := x509.MarshalPKCS8PrivateKey(cert.PrivateKey)
	if err != nil {
		return err
	}
	data := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Certificate[0]})
	data = append(data, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key})...)
	if err := os.WriteFile(c.certFile(), data, 0o600); err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.cert = cert
	return nil
}

// setLink takes the controller off the network, or puts it back.
func (c *controller) setLink(up bool) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.cut == !up {
		return nil
	}
	if err := c.n.lab.board.SetAddress(bmcNetwork, cable.ControllerAddress(c.n.number), up); err != nil {
		return err
	}
	c.cut = !up
	return nil
}

// Powered implements redfish.Machine.
func (c *controller) Powered() bool { return c.n.supply.Load() }

// SetPower implements redfish.Machine. A boot takes longer than the answer: it
// goes on beside it.
func (c *controller) SetPower(_ context.Context, on bool) error {
	if !on {
		_, _, err := c.n.cut()
		if errors.Is(err, errs.Conflict) {
			return nil // has no power
		}
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return errs.New(errs.Unavailable, "the lab goes down")
	}
	c.tasks.Go(func() {
		if err := c.n.powerOn(context.Background()); err != nil && !errors.Is(err, errs.Conflict) {
			c.n.log.Error("boot by bmc", "err", err)
		}
	})
	return nil
}

// Shutdown implements redfish.Machine: the node's own units are stopped in
// order, then its power goes.
func (c *controller) Shutdown(ctx context.Context) error {
	err := c.n.running("shut down", func(l *life) error {
		ctx, cancel := context.WithTimeout(ctx, bmcShutdown)
		defer cancel()
		u := l.units()
		defer u.Close()
		return errors.Join(u.Stop(ctx, unit.Node), u.Stop(ctx, unit.Storage))
	})
	if err != nil {
		c.n.log.Warn("stop units before power goes", "err", err)
	}
	return c.SetPower(ctx, false)
}

func (c *controller) status() *labclient.BMC {
	c.mu.Lock()
	defer c.mu.Unlock()
	return &labclient.BMC{Address: "https://" + net.JoinHostPort(c.address, strconv.Itoa(bmcPort)), User: bmcUser,
		PasswordFile: filepath.Join(c.n.dir, bmcPasswordFile), Fingerprint: redfish.Fingerprint(c.cert), Cut: c.cut}
}

func (c *controller) close() error {
	c.mu.Lock()
	c.closed = true
	c.mu.Unlock()
	err := c.server.Close()
	<-c.served
	c.tasks.Wait()
	return err
}

// bmcDo carries out an order to a node's controller.
func (l *Lab) bmcDo(f func(*controller) error) order {
	return func(_ context.Context, req labclient.Request) (labclient.Answer, error) {
		a := labclient.Answer{At: clock.System{}.Wall()}
		n, err := l.node(req.Node)
		if err != nil {
			return a, err
		}
		if n.bmc == nil {
			return a, errs.New(errs.NotFound, "find the BMC of %s: only nodes have one", req.Node)
		}
		return a, f(n.bmc)
	}
}
