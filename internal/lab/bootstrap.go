package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"roseau/internal/base/errs"
	"roseau/internal/base/paths"
	"roseau/internal/base/size"
	"roseau/internal/client"
	"roseau/internal/core/quorum"
	"roseau/internal/lab/initd"
	"roseau/internal/lab/labclient"
	"roseau/internal/model"
	"roseau/internal/pki"
	"roseau/internal/svc/bmc"
	"roseau/internal/svc/member"
)

// What bootstrap makes.
const (
	PoolName    = "pool1"
	NetworkName = "lan" // bridged onto the nodes' vm0
	userName    = "lab" // of the certificate in the context
)

// daemonTimeout bounds the wait for a node's daemon to answer.
const daemonTimeout = 30 * time.Second

// Bootstrap makes one cluster of a fresh lab, as a person would through the API:
// init on n1, the others join, the command line gets a context, all disks are
// claimed, one pool and one network are made. What is there already is left alone, so that it can be repeated.
// say gets a line for each step.
func Bootstrap(ctx context.Context, st labclient.Status, say func(string)) error {
	if len(st.Nodes) == 0 {
		return nil
	}
	first := nodeAPI(st.Nodes[0])
	defer first.Close()
	for i, n := range st.Nodes {
		if err := enlist(ctx, first, n, i == 0, st.Name, say); err != nil {
			return fmt.Errorf("set up node %s: %w", n.Name, err)
		}
	}
	if err := addWitness(ctx, first, st, say); err != nil {
		return fmt.Errorf("set up the witness: %w", err)
	}
	// Before the disks: who has to find out why one is refused needs the command line.
	if err := addContext(ctx, st); err != nil {
		return err
	}
	for _, n := range st.Nodes {
		if err := setBMC(ctx, first, n, say); err != nil {
			return fmt.Errorf("set the BMC of node %s: %w", n.Name, err)
		}
	}
	for _, n := range st.Nodes {
		if err := claim(ctx, first, n, say); err != nil {
			return fmt.Errorf("claim the disks of node %s: %w", n.Name, err)
		}
	}
	if err := makePool(ctx, first, st, say); err != nil {
		return fmt.Errorf("make pool %s: %w", PoolName, err)
	}
	if err := makeNetwork(ctx, first, say); err != nil {
		return err
	}
	return awaitWitness(ctx, first, st, say)
}

// addWitness lets the witness's machine join, as `roseau witness add` tells a
// person to.
func addWitness(ctx context.Context, first *client.Client, st labclient.Status, say func(string)) error {
	if st.Witness == nil {
		return nil
	}
	err := first.Get(ctx, "/v1/witness", new(member.WitnessState))
	if err == nil || !errors.Is(err, errs.NotFound) {
		return err
	}
	var token struct {
		Token string `json:"token"`
	}
	if _, err := first.Do(ctx, http.MethodPost, "/v1/tokens", map[string]any{"life": "10m", "witness": true}, &token); err != nil {
		return err
	}
	var out bytes.Buffer
	code, err := Exec(ctx, *st.Witness, []string{"roseau", "witness", "run", "--join-only", "--name", st.Witness.Name,
		"--address", st.Witness.Addresses["cluster"], "-"}, Streams{In: strings.NewReader(token.Token + "\n"), Out: &out, Err: &out})
	if err == nil && code != 0 {
		err = errs.New(errs.Unavailable, "roseau witness run ends with code %d: %s", code, strings.TrimSpace(out.String()))
	}
	if err != nil {
		return err
	}
	say("the witness joined")
	return nil
}

// witnessTimeout bounds the wait for the witness's votes.
const witnessTimeout = 30 * time.Second

// awaitWitness waits until the witness has the votes that the voters ask for.
func awaitWitness(ctx context.Context, first *client.Client, st labclient.Status, say func(string)) error {
	if st.Witness == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, witnessTimeout)
	defer cancel()
	want := quorum.WitnessVotes(quorum.Voters(len(st.Nodes)))
	for {
		var w member.WitnessState
		err := first.Get(ctx, "/v1/witness", &w)
		if err == nil && w.Votes == want {
			say(fmt.Sprintf("votes of the witness: %d", want))
			return nil
		}
		select {
		case <-ctx.Done():
			return errs.New(errs.Unavailable, "wait for the votes of the witness: %d, want %d: %w", w.Votes, want, errors.Join(err, context.Cause(ctx))).
				WithHint("see `roseau cluster status`, and witness.log in %s", st.Dir)
		case <-time.After(200 * time.Millisecond):
		}
	}
}

// nodeAPI talks to a node's daemon through its unix socket.
func nodeAPI(n labclient.Node) *client.Client {
	return client.Local(fmt.Sprintf("/proc/%d/root/run/roseau/%s", n.InitPID, filepath.Base(paths.APISocket)))
}

// enlist makes n a node of the cluster, if it is none.
func enlist(ctx context.Context, first *client.Client, n labclient.Node, init bool, cluster string, say func(string)) error {
	c := nodeAPI(n)
	defer c.Close()
	st, err := daemonStatus(ctx, c)
	if err != nil || st.Configured {
		return err
	}
	req := member.NodeRequest{Name: n.Name, Uplinks: map[string]string{NetworkName: "vm0"}, Addresses: map[model.NetworkRole][]string{
		model.RoleCluster: {n.Addresses["cluster"]},
		model.RoleStorage: {n.Addresses["storage"]},
	}}
	if init {
		if _, err := c.Do(ctx, http.MethodPost, "/v1/cluster", member.InitRequest{ClusterName: cluster, NodeRequest: req}, nil); err != nil {
			return err
		}
		say("cluster " + cluster + " made on " + n.Name)
		return nil
	}
	var token struct {
		Token string `json:"token"`
	}
	if _, err := first.Do(ctx, http.MethodPost, "/v1/tokens", map[string]string{"life": "10m"}, &token); err != nil {
		return err
	}
	if _, err := c.Do(ctx, http.MethodPost, "/v1/cluster/join", member.LocalJoinRequest{Token: token.Token, NodeRequest: req}, nil); err != nil {
		return err
	}
	say(n.Name + " joined")
	return nil
}

// daemonStatus waits until the node's daemon answers.
func daemonStatus(ctx context.Context, c *client.Client) (member.Status, error) {
	ctx, cancel := context.WithTimeout(ctx, daemonTimeout)
	defer cancel()
	for {
		var st member.Status
		err := c.Get(ctx, "/v1/cluster/status", &st)
		if err == nil || !errors.Is(err, errs.Unavailable) {
			return st, err
		}
		select {
		case <-ctx.Done():
			return st, err
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// task sends a change and waits for the task that it became.
func task(ctx context.Context, c *client.Client, path string, in any) error {
	t, err := c.Change(ctx, http.MethodPost, path, in, nil)
	if err != nil || t == nil {
		return err
	}
	end, err := c.WaitTask(ctx, t.ID.String(), nil)
	if err != nil {
		return err
	}
	return client.TaskError(end)
}

// setBMC tells the cluster of a node's management controller, as `roseau node bmc
// set` does.
func setBMC(ctx context.Context, c *client.Client, n labclient.Node, say func(string)) error {
	path := "/v1/nodes/" + n.Name + "/bmc"
	err := c.Get(ctx, path, new(bmc.Shown))
	if err == nil || !errors.Is(err, errs.NotFound) || n.BMC == nil {
		return err
	}
	password, err := os.ReadFile(n.BMC.PasswordFile)
	if err != nil {
		return err
	}
	req := bmc.SetRequest{Address: n.BMC.Address, User: n.BMC.User, Password: strings.TrimSpace(string(password)), Fingerprint: n.BMC.Fingerprint}
	if _, err := c.Do(ctx, http.MethodPut, path, req, nil); err != nil {
		return err
	}
	say("the BMC of " + n.Name + " is at " + n.BMC.Address)
	return nil
}

// claim gives all disks of a node to the cluster; claiming one twice is nothing.
func claim(ctx context.Context, c *client.Client, n labclient.Node, say func(string)) error {
	var disks []string
	for _, d := range n.Disks {
		disks = append(disks, paths.State+initd.DiskDir+"/"+d.Name)
	}
	if len(disks) == 0 {
		return nil
	}
	if err := task(ctx, c, "/v1/nodes/"+n.Name+"/disks/claim", map[string][]string{"paths": disks}); err != nil {
		return err
	}
	say(fmt.Sprintf("%s: %d disks of %s claimed", n.Name, len(disks), size.Bytes(n.Disks[0].SizeBytes)))
	return nil
}

// exists asks whether a list has an object of that name.
func exists(ctx context.Context, c *client.Client, path, name string) (bool, error) {
	var list []struct {
		Name string `json:"name"`
	}
	if err := c.Get(ctx, path, &list); err != nil {
		return false, err
	}
	for _, o := range list {
		if o.Name == name {
			return true, nil
		}
	}
	return false, nil
}

func makePool(ctx context.Context, c *client.Client, st labclient.Status, say func(string)) error {
	if len(st.Nodes[0].Disks) == 0 {
		return nil
	}
	if there, err := exists(ctx, c, "/v1/pools", PoolName); err != nil || there {
		return err
	}
	copies, domain, on := min(3, len(st.Nodes)), model.DomainNode, fmt.Sprintf("%d nodes", len(st.Nodes))
	if len(st.Nodes) == 1 { // as a mirror of two local disks
		copies, domain, on = min(2, len(st.Nodes[0].Disks)), model.DomainDisk, fmt.Sprintf("%d disks of one node", len(st.Nodes[0].Disks))
	}
	if err := task(ctx, c, "/v1/pools", map[string]any{"name": PoolName, "copies": copies, "domain": domain}); err != nil {
		return err
	}
	say(fmt.Sprintf("pool %s made: %d copies on %s", PoolName, copies, on))
	return nil
}

func makeNetwork(ctx context.Context, c *client.Client, say func(string)) error {
	if there, err := exists(ctx, c, "/v1/networks", NetworkName); err != nil || there {
		return err
	}
	if err := task(ctx, c, "/v1/networks", map[string]string{"name": NetworkName}); err != nil {
		return fmt.Errorf("make network %s: %w", NetworkName, err)
	}
	say("network " + NetworkName + " made")
	return nil
}

func contextOrigin(name string) string { return "lab " + name }

// addContext lets the command line of this user talk to the lab's cluster, under
// the lab's name, and selects it.
func addContext(ctx context.Context, st labclient.Status) error {
	c := nodeAPI(st.Nodes[0])
	defer c.Close()
	key, csr, err := pki.NewRequest(userName)
	if err != nil {
		return err
	}
	var cert member.UserCertificate
	if _, err := c.Do(ctx, http.MethodPost, "/v1/users/"+userName+"/certificate", map[string]string{"csr": string(csr)}, &cert); err != nil {
		return fmt.Errorf("add context %s: %w", st.Name, err)
	}
	cs, err := client.LoadContexts()
	if err != nil {
		return err
	}
	entry := client.Context{CA: cert.CA, Cert: cert.Cert, Key: string(key), Origin: contextOrigin(st.Name)}
	for _, n := range st.Nodes {
		entry.Addresses = append(entry.Addresses, n.API)
	}
	cs.Contexts[st.Name], cs.Current = entry, st.Name
	return cs.Save()
}

// RemoveContext takes back what Bootstrap added for the command line; other contexts stay.
func RemoveContext(name string) error {
	cs, err := client.LoadContexts()
	if err != nil {
		return err
	}
	if c, ok := cs.Contexts[name]; !ok || c.Origin != contextOrigin(name) {
		return nil
	}
	delete(cs.Contexts, name)
	if cs.Current == name {
		cs.Current = ""
		var rest []string
		for other := range cs.Contexts {
			rest = append(rest, other)
		}
		if slices.Sort(rest); len(rest) > 0 {
			cs.Current = rest[0]
		}
	}
	return cs.Save()
}

// ParseGroups reads the groups of a partition: "n1,n2/n3".
func ParseGroups(s string) ([][]string, error) {
	var groups [][]string
	for _, g := range strings.Split(s, "/") {
		var names []string
		for _, n := range strings.Split(g, ",") {
			if !labclient.ValidName(n) {
				return nil, errs.New(errs.Invalid, "parse groups %q: %q is no node", s, n).WithHint("write for example n1,n2/n3")
			}
			names = append(names, n)
		}
		groups = append(groups, names)
	}
	if len(groups) < 2 {
		return nil, errs.New(errs.Invalid, "parse groups %q: want two groups or more", s).WithHint("write for example n1,n2/n3")
	}
	return groups, nil
}
