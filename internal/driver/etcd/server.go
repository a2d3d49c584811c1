// Package etcd runs an etcd member inside the daemon, changes the membership,
// and makes clients for the daemon and for the guards, which never reach etcd
// through a daemon. All of it speaks mutual TLS with node certificates.
//
// Etcd is small and rarely written here: no data path reads it, and losing it
// stops changes, not VMs.
package etcd

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"go.etcd.io/etcd/client/pkg/v3/transport"
	"go.etcd.io/etcd/server/v3/embed"
	"go.etcd.io/etcd/server/v3/storage/wal"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"

	"roseau/internal/base/errs"
	"roseau/internal/base/ids"
	"roseau/internal/base/paths"
	"roseau/internal/pki"
)

// Timing. A lost leader is replaced within about 0.9 s with these.
const (
	heartbeatMS   = 100
	electionMS    = 500
	readyTimeout  = 60 * time.Second
	closeTimeout  = 3 * time.Second
	quotaBytes    = 512 << 20
	compactEvery  = "10m"
	walBytes      = 16 << 20 // preallocated twice a member; etcd's own 64 MB is for busier clusters
	maxLearners   = 3        // a node, and the two members of a witness; the same on all
	maxTxnOps     = 512      // a VM of many volumes is created and taken in one txn
	keepAliveFrom = 500 * time.Millisecond
)

func init() { wal.SegmentSizeBytes = walBytes } // a variable of etcd; read when a segment is made

// Config says which member to run.
type Config struct {
	Name     string        // of the member: a node's id, or WitnessName
	Identity *pki.Identity // loaded from a directory: etcd reads the files itself
	Dir      string        // data directory
	// Addresses are the IP addresses to listen on, best first; those that this
	// machine does not have are left out. All are announced to clients, the first to
	// other members: the list of members gets the rest by SetPeerURLs.
	Addresses []string
	// Ports to listen on; the zero value means those of a node.
	Ports Ports
	// InitialCluster has the peer URLs of each member by name, with commas in
	// between; the first start needs it, later starts read the data directory.
	InitialCluster map[string]string
	// New makes a new cluster of this member alone if there is no data. Without
	// New and InitialCluster a missing directory is an error: a voter that lost
	// its data must not begin another history.
	New bool
	// ForceNew throws all other members out of the data that is there: for
	// `cluster recover`.
	ForceNew bool
	Cluster  ids.ID // guards against members of another cluster
	LogFile  string // "" : only warnings, to stderr
}

// Ports of a member.
type Ports struct{ Client, Peer, HTTP int }

func (p Ports) filled() Ports {
	if p == (Ports{}) {
		return Ports{paths.PortEtcdClient, paths.PortEtcdPeer, paths.PortEtcdHTTP}
	}
	return p
}

// PeerURL returns the URL on which a member at addr talks to the other members.
func PeerURL(addr string) string { return hostURL(addr, paths.PortEtcdPeer) }

// ClientURL returns the URL on which a member at addr serves clients.
func ClientURL(addr string) string { return hostURL(addr, paths.PortEtcdClient) }

// URL returns the URL of a member at addr and port.
func URL(addr string, port int) string { return hostURL(addr, port) }

func hostURL(addr string, port int) string {
	if strings.Contains(addr, ":") {
		addr = "[" + addr + "]"
	}
	return "https://" + addr + ":" + strconv.Itoa(port)
}

// Server is a running member.
type Server struct {
	e       *embed.Etcd
	missing []string           // addresses that this machine did not have
	cut     func()             // ends all connections of clients at once
	unwatch context.CancelFunc // ends the watch over its sockets
	once    sync.Once
	done    chan struct{} // closed when the member has stopped, for whatever reason
	err     error         // why, valid after done; nil after Close
	mu      sync.Mutex    // protects err
}

// Start runs a member and returns when it takes part in the cluster, or serves
// as a learner. If the data directory exists, the member goes on where it was.
func Start(ctx context.Context, cfg Config) (*Server, error) {
	missing := absent(cfg.Addresses)
	if len(missing) < len(cfg.Addresses) { // with none at all etcd says what is wrong
		cfg.Addresses = slices.DeleteFunc(slices.Clone(cfg.Addresses), func(a string) bool { return slices.Contains(missing, a) })
	}
	ec, err := embedConfig(cfg)
	if err != nil {
		return nil, err
	}
	var mu sync.Mutex
	var servers []*grpc.Server
	ec.ServiceRegister = func(g *grpc.Server) {
		mu.Lock()
		defer mu.Unlock()
		servers = append(servers, g)
	}
	e, err := embed.StartEtcd(ec)
	if err != nil {
		return nil, fmt.Errorf("start etcd: %w", err)
	}
	wctx, unwatch := context.WithCancel(context.WithoutCancel(ctx)) // as long as the member
	s := &Server{e: e, missing: missing, done: make(chan struct{}), unwatch: unwatch, cut: func() {
		mu.Lock()
		defer mu.Unlock()
		for _, g := range servers {
			g.Stop()
		}
	}}
	go newKeeper().run(wctx, s.peerPorts)
	t := time.NewTimer(readyTimeout)
	defer t.Stop()
	select {
	case <-e.Server.ReadyNotify():
	case <-e.Server.StopNotify():
		err = errs.New(errs.Unavailable, "start etcd: member stopped at once; it may have been removed from the cluster")
	case err = <-e.Err():
		err = fmt.Errorf("start etcd: %w", err)
	case <-ctx.Done():
		err = context.Cause(ctx)
	case <-t.C:
		// Not an error: without the others there is no quorum, and this member
		// must go on running so that there can be one.
	}
	if err != nil {
		s.stop(nil)
		return nil, err
	}
	go s.watch()
	return s, nil
}

// watch ends with the member: Close stops it, or etcd itself did.
func (s *Server) watch() {
	select {
	case <-s.done:
	case <-s.e.Server.StopNotify():
		s.stop(errs.New(errs.Unavailable, "etcd member stopped by itself: it was removed from the cluster, or its disk failed"))
	case err := <-s.e.Err():
		s.stop(fmt.Errorf("etcd: %w", err))
	}
}

// absent returns those of addrs that this machine does not have now.
func absent(addrs []string) []string {
	var out []string
	for _, a := range addrs {
		l, err := net.Listen("tcp", net.JoinHostPort(a, "0"))
		if errors.Is(err, unix.EADDRNOTAVAIL) {
			out = append(out, a)
		}
		if err == nil {
			l.Close()
		}
	}
	return out
}

// Found reports whether an address is there by now that was left out at the
// start: a start anew would listen on it.
func (s *Server) Found() bool { return len(absent(s.missing)) < len(s.missing) }

// peerPorts are the ports at which members talk to each other.
func (s *Server) peerPorts() map[int]bool {
	out := map[int]bool{}
	for _, l := range s.e.Peers {
		if a, ok := l.Addr().(*net.TCPAddr); ok {
			out[a.Port] = true
		}
	}
	for _, m := range s.e.Server.Cluster().Members() {
		for _, u := range m.PeerURLs {
			parsed, err := url.Parse(u)
			if err != nil {
				continue
			}
			if port, err := strconv.Atoi(parsed.Port()); err == nil {
				out[port] = true
			}
		}
	}
	return out
}

// Done is closed when the member has stopped; Err says why.
func (s *Server) Done() <-chan struct{} { return s.done }

// Err is why the member stopped by itself; nil while it runs and after Close.
func (s *Server) Err() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.err
}

// IsLeader reports whether this member leads now.
func (s *Server) IsLeader() bool {
	return s.e.Server.Leader() == s.e.Server.MemberID()
}

// Leader returns the member id of the leader that this member follows, or 0.
func (s *Server) Leader() uint64 { return uint64(s.e.Server.Leader()) }

// Member returns this member's id.
func (s *Server) Member() uint64 { return uint64(s.e.Server.MemberID()) }

// MoveLeader hands the leadership, which this member must have, to another one.
func (s *Server) MoveLeader(ctx context.Context, to uint64) error {
	if err := s.e.Server.MoveLeader(ctx, s.Member(), to); err != nil {
		return fmt.Errorf("hand etcd's leadership to %x: %w", to, err)
	}
	return nil
}

// Close cuts the clients, hands the leadership over and stops the member.
func (s *Server) Close() { s.stop(nil) }

func (s *Server) stop(cause error) {
	s.once.Do(func() {
		s.unwatch()
		s.mu.Lock()
		s.err = cause
		s.mu.Unlock()
		// Etcd's Close waits for streams of clients (up to 21 s seen) while its raft
		// goes on; so they are cut first, and look for another member at once. What
		// still hangs is ended by force: it is a crash, and the WAL is made for that.
		s.cut()
		closed := make(chan struct{})
		go func() { s.e.Close(); close(closed) }()
		t := time.NewTimer(closeTimeout)
		defer t.Stop()
		select {
		case <-closed:
		case <-t.C:
			s.e.Server.HardStop()
			for _, l := range s.e.Clients {
				l.Close()
			}
			for _, l := range s.e.Peers {
				l.Close()
			}
		}
		close(s.done)
	})
	<-s.done
}

func embedConfig(cfg Config) (*embed.Config, error) {
	if len(cfg.Addresses) == 0 {
		return nil, errs.New(errs.Invalid, "start etcd: no address")
	}
	if _, err := os.Stat(filepath.Join(cfg.Dir, "member")); err != nil && !cfg.New && cfg.InitialCluster == nil {
		return nil, errs.New(errs.Corrupt, "start etcd: its data in %s is missing: %w", cfg.Dir, err).
			WithHint("if the disk was replaced: `roseau node remove` this node on another one, then join again")
	}
	if err := os.MkdirAll(cfg.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("start etcd: %w", err)
	}
	ec := embed.NewConfig()
	ec.Name = cfg.Name
	ec.Dir = cfg.Dir
	ec.TickMs, ec.ElectionMs, ec.PreVote = heartbeatMS, electionMS, true
	// core/quorum knows better: the check would refuse to replace a dead voter of
	// three, and takes the two members of a witness for two machines.
	ec.StrictReconfigCheck = false
	ec.MaxLearners = maxLearners
	ec.ForceNewCluster = cfg.ForceNew
	ports := cfg.Ports.filled()
	ec.MaxTxnOps = maxTxnOps
	ec.QuotaBackendBytes = quotaBytes
	ec.AutoCompactionMode, ec.AutoCompactionRetention = "periodic", compactEvery
	ec.SnapshotCount = 10000
	ec.GRPCAdditionalServerOptions = surviveRemoval()
	ec.GRPCKeepAliveMinTime = keepAliveFrom
	ec.GRPCKeepAliveInterval, ec.GRPCKeepAliveTimeout = time.Second, 2*time.Second
	ec.InitialClusterToken = cfg.Cluster.String()
	ec.ListenPeerUrls, ec.ListenClientUrls = nil, nil
	for _, a := range cfg.Addresses {
		ec.ListenPeerUrls = append(ec.ListenPeerUrls, mustURL(hostURL(a, ports.Peer)))
		ec.ListenClientUrls = append(ec.ListenClientUrls, mustURL(hostURL(a, ports.Client)))
	}
	// Without a listener of its own, HTTP shares the port with gRPC behind a
	// multiplexer that etcd itself warns of.
	ec.ListenClientHttpUrls = []url.URL{mustURL(hostURL(cfg.Addresses[0], ports.HTTP))}
	ec.AdvertisePeerUrls = ec.ListenPeerUrls[:1]
	ec.AdvertiseClientUrls = ec.ListenClientUrls
	ec.ClusterState = embed.ClusterStateFlagNew
	ec.InitialCluster = ec.Name + "=" + hostURL(cfg.Addresses[0], ports.Peer)
	if cfg.InitialCluster != nil {
		ec.ClusterState = embed.ClusterStateFlagExisting
		var parts []string
		for name, urls := range cfg.InitialCluster {
			for u := range strings.SplitSeq(urls, ",") {
				parts = append(parts, name+"="+u)
			}
		}
		ec.InitialCluster = strings.Join(parts, ",")
	}
	ca, cert, key := cfg.Identity.Files()
	tlsInfo := transport.TLSInfo{
		CertFile: cert, KeyFile: key, TrustedCAFile: ca, ClientCertAuth: true,
		// Which node it is does not depend on the address it comes from; that it
		// is a node, its name says: users' certificates do not have it.
		SkipClientSANVerify: true,
		AllowedHostnames:    []string{pki.AnyNodeName},
		ServerName:          pki.AnyNodeName,
	}
	ec.PeerTLSInfo, ec.ClientTLSInfo = tlsInfo, tlsInfo
	ec.TlsMinVersion = "TLS1.3"
	logger, err := newLogger(cfg.LogFile)
	if err != nil {
		return nil, fmt.Errorf("start etcd: %w", err)
	}
	ec.ZapLoggerBuilder = embed.NewZapLoggerBuilder(logger)
	return ec, nil
}

func newLogger(file string) (*zap.Logger, error) {
	zc := zap.NewProductionConfig()
	zc.Level = zap.NewAtomicLevelAt(zapcore.WarnLevel)
	zc.OutputPaths, zc.ErrorOutputPaths = []string{"stderr"}, []string{"stderr"}
	zc.EncoderConfig.EncodeTime = zapcore.ISO8601TimeEncoder
	if file != "" {
		if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
			return nil, err
		}
		zc.OutputPaths = []string{file}
	}
	return zc.Build(zap.Fields(zap.String("part", "etcd")))
}

func mustURL(s string) url.URL {
	u, err := url.Parse(s)
	if err != nil {
		panic("etcd: parse url " + s + ": " + err.Error()) // addresses were checked when they were given
	}
	return *u
}
