package cli

import (
	"bufio"
	"fmt"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"roseau/internal/base/errs"
	"roseau/internal/model"
	"roseau/internal/svc/member"
)

func newClusterCmd(a *app) *cobra.Command {
	cmd := &cobra.Command{Use: "cluster", Short: "Make a cluster, let machines join it, see how it is"}
	cmd.AddCommand(newClusterInit(a), newClusterToken(a), newClusterJoin(a), newClusterStatus(a), newClusterRecover(a), newClusterRestart(a), newClusterShutdown(a))
	return cmd
}

// nodeFlags are the flags that say what a machine is called and where it is
// reached.
type nodeFlags struct {
	name             string
	address          []string
	cluster, storage []string
	uplinks          map[string]string
}

func (f *nodeFlags) add(cmd *cobra.Command) {
	fs := cmd.Flags()
	fs.StringVar(&f.name, "name", "", "name of this node (default: the host name)")
	fs.StringSliceVar(&f.address, "address", nil, "IP address of this machine for everything")
	fs.StringSliceVar(&f.cluster, "cluster-address", nil, "IP address for etcd, API and beats (default: --address)")
	fs.StringSliceVar(&f.storage, "storage-address", nil, "IP address for replication and migration, and for etcd and API when the cluster network is cut (default: --address, else the cluster address)")
	fs.StringToStringVar(&f.uplinks, "uplink", nil, "NETWORK=INTERFACE: the interface that carries a bridged network, for example lan=eth2")
}

func (f *nodeFlags) request() (member.NodeRequest, error) {
	r := member.NodeRequest{Name: f.name, Addresses: map[model.NetworkRole][]string{}, Uplinks: f.uplinks}
	if r.Name == "" {
		host, err := os.Hostname()
		if err != nil {
			return r, fmt.Errorf("name this node: %w", err)
		}
		r.Name, _, _ = strings.Cut(strings.ToLower(host), ".")
	}
	set := func(role model.NetworkRole, addrs ...[]string) {
		for _, a := range addrs {
			if len(a) > 0 {
				r.Addresses[role] = a
				return
			}
		}
	}
	set(model.RoleCluster, f.cluster, f.address)
	set(model.RoleStorage, f.storage, f.address, f.cluster)
	if len(r.Addresses[model.RoleCluster]) == 0 {
		return r, errs.New(errs.Invalid, "no address").WithHint("give --address IP: an address of this machine that the other nodes reach")
	}
	return r, nil
}

func newClusterInit(a *app) *cobra.Command {
	var f nodeFlags
	var name string
	cmd := &cobra.Command{Use: "init --address IP", Short: "Make a new cluster of this machine", Args: cobra.NoArgs, RunE: func(cmd *cobra.Command, _ []string) error {
		req, err := f.request()
		if err != nil {
			return err
		}
		var st member.Status
		return a.change(cmd, http.MethodPost, "/v1/cluster", member.InitRequest{ClusterName: name, NodeRequest: req}, &st, func() string {
			return fmt.Sprintf("cluster made; this machine is its node %s\nnext: `roseau cluster token`, then `roseau cluster join` on the other machines", st.Node)
		})
	}}
	f.add(cmd)
	cmd.Flags().StringVar(&name, "cluster-name", "roseau", "name of the cluster")
	return cmd
}

func newClusterToken(a *app) *cobra.Command {
	var life time.Duration
	cmd := &cobra.Command{Use: "token", Short: "Make a token with which one machine can join, once", Args: cobra.NoArgs, RunE: func(cmd *cobra.Command, _ []string) error {
		var out struct {
			Name    string    `json:"name"`
			Expires time.Time `json:"expires"`
			Token   string    `json:"token"`
		}
		in := map[string]string{"life": life.String()}
		return a.change(cmd, http.MethodPost, "/v1/tokens", in, &out, func() string { return out.Token })
	}}
	cmd.Flags().DurationVar(&life, "expires", member.DefaultTokenLife, "how long the token can be used, 1m to 168h")
	return cmd
}

func newClusterJoin(a *app) *cobra.Command {
	var f nodeFlags
	cmd := &cobra.Command{Use: "join [TOKEN] --address IP", Short: "Join the cluster that a token is from",
		Long: "Join the cluster that a token is from. Without TOKEN, or with -, the token is\nread from standard input, so that it does not show in the list of processes.",
		Args: cobra.MaximumNArgs(1), RunE: func(cmd *cobra.Command, args []string) error {
			req, err := f.request()
			if err != nil {
				return err
			}
			token := ""
			if len(args) == 1 && args[0] != "-" {
				token = args[0]
			} else if token, err = bufio.NewReader(cmd.InOrStdin()).ReadString('\n'); err != nil && token == "" {
				return errs.New(errs.Invalid, "read token from standard input: %w", err)
			}
			if _, err := member.ParseInvitation(token); err != nil {
				return err
			}
			var st member.Status
			in := member.LocalJoinRequest{Token: strings.TrimSpace(token), NodeRequest: req}
			return a.change(cmd, http.MethodPost, "/v1/cluster/join", in, &st, func() string {
				return fmt.Sprintf("this machine is node %s now; `roseau cluster status` shows the cluster", st.Node)
			})
		}}
	f.add(cmd)
	return cmd
}

func newClusterStatus(a *app) *cobra.Command {
	return &cobra.Command{Use: "status", Short: "Nodes, etcd members, and what can fail next", Args: cobra.NoArgs, RunE: func(cmd *cobra.Command, _ []string) error {
		var st member.Status
		return a.get(cmd, "/v1/cluster/status", &st, func() *table { return statusTable(&st) })
	}}
}

func statusTable(st *member.Status) *table {
	if !st.Configured {
		return newSheet().line("%s", st.Quorum.Text)
	}
	etcd := map[string]string{}
	for _, m := range st.Members {
		role := "voter"
		switch {
		case m.Learner:
			role = "learner"
		case m.Leader:
			role = "leader"
		}
		if !m.Answers {
			role += ", " + m.Error
		}
		etcd[m.Node] = role
	}
	tb := newTable("NODE", "SESSION", "ETCD", "ADDRESS", "BEAT", "NO BEAT ON")
	for _, n := range st.Nodes {
		session := "lost"
		if n.Alive {
			session = "alive"
		}
		role := etcd[n.Name]
		delete(etcd, n.Name)
		silent := make([]string, len(n.Silent))
		for i, role := range n.Silent {
			silent[i] = string(role)
		}
		tb.row(n.Name, session, role, n.Address, n.Beat, strings.Join(silent, ", "))
	}
	for _, m := range st.Members {
		if role, ok := etcd[m.Node]; ok {
			tb.row(m.Node, "-", role, "-", "-", "-")
		}
	}
	if st.Cluster != nil {
		tb.line("cluster %s (%s), generation %d", st.Cluster.Name, st.Cluster.ID, st.Cluster.Generation)
	}
	return tb.line("%s", st.Quorum.Text)
}
