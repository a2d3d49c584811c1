package e2e

import (
	"encoding/json"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"roseau/internal/lab/labclient"
	"roseau/internal/model"
)

// long says that what takes minutes is wanted, too: `make e2e` sets it.
func long(t *testing.T) {
	t.Helper()
	if os.Getenv("ROSEAU_E2E_LONG") == "" {
		t.Skip("takes long; `make e2e` runs it")
	}
}

// heals gives the lab back as it was if the test fails half-way, so that the tests
// after it can say something.
func heals(t *testing.T) {
	t.Cleanup(func() {
		if !t.Failed() {
			return
		}
		for _, args := range [][]string{{"cluster", "shutdown", "--cancel"}, {"cluster", "restart", "--cancel"},
			{"lab", "power", "restore", "--name", labName}, {"lab", "heal", "--name", labName}} {
			cli(time.Minute, args...) // most of it is refused: there is nothing to take back
		}
		for _, n := range []string{"n1", "n2", "n3"} {
			cli(time.Minute, "lab", "service", "start", n, "storage", "--name", labName)
			cli(time.Minute, "node", "undrain", n)
		}
		nodesReady(t)
	})
}

// again is must for a command that may meet the cluster just after a node was lost:
// etcd may be electing a leader. It is repeated for a minute.
func again(t *testing.T, args ...string) string {
	t.Helper()
	for end := time.Now().Add(time.Minute); ; time.Sleep(200 * time.Millisecond) {
		out, err := cli(time.Minute, args...)
		if err == nil {
			return out
		}
		if time.Now().After(end) {
			t.Fatalf("roseau %s: %v\n%s", strings.Join(args, " "), err, out)
		}
	}
}

// command is a command line that runs beside the test.
type command struct {
	args []string
	done chan struct{}
	out  string // read after done
	err  error
}

func start(limit time.Duration, args ...string) *command {
	c := &command{args: args, done: make(chan struct{})}
	go func() {
		defer close(c.done)
		c.out, c.err = cli(limit, args...)
	}()
	return c
}

// works waits for the end of a command that has to succeed.
func (c *command) works(t *testing.T) string {
	t.Helper()
	<-c.done
	if c.err != nil {
		t.Fatalf("roseau %s: %v\n%s", strings.Join(c.args, " "), c.err, c.out)
	}
	return c.out
}

// fails waits for the end of one that must not, and demands words.
func (c *command) fails(t *testing.T, words string) {
	t.Helper()
	<-c.done
	if c.err == nil || !strings.Contains(c.out, words) {
		t.Errorf("roseau %s: %v, want a failure that says %q\n%s", strings.Join(c.args, " "), c.err, words, c.out)
	}
}

func running(v vmSheet) bool { return v.Status.State == "running" }

func stopped(v vmSheet) bool { return v.Status.State == "stopped" }

// off: it does not run, and is to start again.
func off(v vmSheet) bool { return v.Status.State == "stopped" || v.Status.State == "starting" }

func runsOn(t *testing.T, vm, node string) {
	t.Helper()
	waitVM(t, vm, "running on "+node, func(v vmSheet) bool { return running(v) && v.Status.Node == node })
}

// eventsSince are the cluster's events from a moment on.
func eventsSince(t *testing.T, since time.Time) (out []model.Event) {
	t.Helper()
	var all []model.Event
	decode(t, must(t, time.Minute, "events", "--limit", "1000", "-o", "json"), &all)
	for _, e := range all {
		if !e.Time.Before(since) {
			out = append(out, e)
		}
	}
	return out
}

// noPlug demands that no guest had to be cut off: all powered off by their button.
func noPlug(t *testing.T, since time.Time) {
	t.Helper()
	for _, e := range eventsSince(t, since) {
		if strings.Contains(e.Text, "did not power off in time") {
			t.Errorf("told: %s %s: %s", e.Level, e.Subject, e.Text)
		}
	}
}

// noAlarm demands that nothing was told of a node, of every node if subject is the
// cluster, from the event that it goes as asked until it had power again.
func noAlarm(t *testing.T, since, until time.Time, subject, goes string) {
	t.Helper()
	away, seen := false, false
	for _, e := range eventsSince(t, since) {
		switch {
		case e.Subject == subject && strings.HasPrefix(e.Text, goes):
			away, seen = true, true
		case e.Subject == subject && strings.HasPrefix(e.Text, "is back") || e.Time.After(until):
			away = false
		case away && e.Level != "info" && (e.Subject == subject || subject == "cluster" && strings.HasPrefix(e.Subject, "node ")):
			t.Errorf("told: %s %s: %s", e.Level, e.Subject, e.Text)
		}
	}
	if !seen {
		t.Errorf("%s: no event tells that it %s", subject, goes)
	}
}

func labStatus(t *testing.T) (st labclient.Status) {
	t.Helper()
	decode(t, must(t, time.Minute, "lab", "status", "--name", labName, "-o", "json"), &st)
	return st
}

// boots is how often each node has booted.
func boots(t *testing.T) map[string]int {
	t.Helper()
	out := map[string]int{}
	for _, n := range labStatus(t).Nodes {
		out[n.Name] = n.Boots
	}
	return out
}

type nodeRow struct {
	Name string `json:"name"`
	Spec struct {
		Drain bool             `json:"drain"`
		Order *model.NodeOrder `json:"order"`
	} `json:"spec"`
	Status struct {
		Ready bool `json:"ready"`
	} `json:"status"`
}

// nodesReady waits until every node is ready and nothing is ordered of any.
func nodesReady(t *testing.T) {
	t.Helper()
	eventually(t, 2*time.Minute, "every node to be ready, without orders", func() bool {
		out, err := cli(time.Minute, "node", "list", "-o", "json")
		if err != nil {
			return false
		}
		var ns []nodeRow
		decode(t, out, &ns)
		return len(ns) == 3 && !slices.ContainsFunc(ns, func(n nodeRow) bool { return !n.Status.Ready || n.Spec.Drain || n.Spec.Order != nil })
	})
}

// whole waits until every volume has its copies: what comes next must find them.
func whole(t *testing.T) {
	t.Helper()
	eventually(t, 2*time.Minute, "every volume to be whole", func() bool {
		out, err := cli(time.Minute, "volume", "list", "-o", "json")
		if err != nil {
			return false
		}
		var vs []struct {
			Status struct {
				Health model.Health `json:"health"`
			} `json:"status"`
		}
		decode(t, out, &vs)
		for _, v := range vs {
			if v.Status.Health != model.Healthy {
				return false
			}
		}
		return true
	})
}

// taskOf returns the newest task of an action.
func taskOf(t *testing.T, action string) (found model.Task) {
	t.Helper()
	var ts []model.Task
	decode(t, must(t, time.Minute, "task", "list", "-o", "json"), &ts)
	for _, x := range ts {
		if x.Action == action && x.Created.After(found.Created) {
			found = x
		}
	}
	return found
}

// The whole cluster goes off in order, guests by their button, and starts unattended:
// what ran runs where it ran, what a person had stopped stays stopped. Before that,
// a shutdown is called off while a guest takes its time.
func TestClusterShutdown(t *testing.T) {
	long(t)
	db, web := newGuest(t, "db", 1), newGuest(t, "web", 2)
	must(t, time.Minute, "vm", "set", "web", "--after", "db")
	must(t, time.Minute, "vm", "create", "idle", "--memory", "64MiB", "--disk", "size=64MiB", "--start")
	t.Cleanup(func() { must(t, time.Minute, "vm", "delete", "idle", "--confirm", "idle") })
	heals(t) // before the machines are deleted
	must(t, time.Minute, "vm", "stop", "idle", "--force")
	must(t, time.Minute, "vm", "start", "db")
	must(t, time.Minute, "vm", "start", "web")
	dbBoot, webBoot := db.up(t, "").Boot, web.up(t, "").Boot
	db.fill(t)
	web.fill(t)
	db.post(t, "/button?hold=1")
	web.post(t, "/button?hold=1")
	began, before := time.Now(), boots(t)

	// web starts after db, so it stops before it: db's button is left alone as long.
	shutdown := start(5*time.Minute, "cluster", "shutdown", "--confirm", labName)
	web.pressed(t, 2) // again after 5 s
	if st := db.up(t, ""); st.Pressed > 0 {
		t.Error("db is told to stop while web, which starts after it, still runs")
	}
	refused(t, exitConflict, []string{"shutdown", "under way"}, "node", "drain", "n2")
	must(t, time.Minute, "cluster", "shutdown", "--cancel")
	shutdown.fails(t, "cancelled")
	web.powersOff(t)
	webBoot = web.up(t, webBoot).Boot
	waitVM(t, "web", "running", running)
	if st := db.up(t, ""); st.Boot != dbBoot || st.Pressed > 0 {
		t.Errorf("the shutdown that was called off reached db: boot %s, was %s; button pressed %d times", st.Boot, dbBoot, st.Pressed)
	}

	dbHome, webHome := showVM(t, "db").Status.Node, showVM(t, "web").Status.Node
	web.post(t, "/button?hold=1")
	shutdown = start(5*time.Minute, "cluster", "shutdown", "--confirm", labName)
	web.pressed(t, 1)
	web.powersOff(t)
	db.pressed(t, 1)
	db.powersOff(t)
	if out := shutdown.works(t); !strings.Contains(out, "2 machines off") {
		t.Errorf("shutdown: %s", out)
	}
	eventually(t, 2*time.Minute, "every node to go off", func() bool {
		return !slices.ContainsFunc(labStatus(t).Nodes, func(n labclient.Node) bool { return n.Power != labclient.Off })
	})

	power := time.Now()
	must(t, time.Minute, "lab", "power", "restore", "--name", labName)
	nodesReady(t)
	db.up(t, dbBoot)
	web.up(t, webBoot)
	runsOn(t, "db", dbHome)
	runsOn(t, "web", webHome)
	db.filled(t)
	web.filled(t)
	if v := showVM(t, "idle"); !stopped(v) {
		t.Errorf("a person had stopped idle; now it is %s", v.Status.State)
	}
	for name, n := range boots(t) {
		if n != before[name]+1 {
			t.Errorf("%s has booted %d times, not once", name, n-before[name])
		}
	}
	noPlug(t, began)
	noAlarm(t, began, power, "cluster", "every machine is off")
	whole(t)
}

// A shutdown of a node that waits for copies is called off: what left it goes back,
// and it never went down.
func TestNodeShutdownIsCalledOff(t *testing.T) {
	heals(t)
	must(t, 2*time.Minute, "vm", "create", "guest", "--memory", "64MiB", "--disk", "size=64MiB", "--start")
	defer func() {
		must(t, time.Minute, "vm", "stop", "guest", "--force")
		must(t, time.Minute, "vm", "delete", "guest", "--confirm", "guest")
	}()
	home := awayFromFirst(t, "guest")
	third := map[string]string{"n2": "n3", "n3": "n2"}[home]
	run, before := showVM(t, "guest").Status.Run, boots(t)
	must(t, time.Minute, "lab", "service", "stop", third, "storage", "--name", labName)
	eventually(t, time.Minute, "a copy to be out", func() bool { return !inSync(t, showDisk(t, "guest")) })
	shutdown := start(5*time.Minute, "node", "shutdown", home)
	eventually(t, time.Minute, "the shutdown to wait for copies", func() bool {
		return strings.Contains(taskOf(t, "node shutdown "+home).Phase, "in-sync copies without "+home)
	})
	if v := showVM(t, "guest"); v.Status.Node == home {
		t.Errorf("it still runs on %s, which waits for copies alone", home)
	}
	must(t, time.Minute, "node", "undrain", home)
	shutdown.fails(t, "was undrained")
	runsOn(t, "guest", home)
	if got := showVM(t, "guest").Status.Run; got != run {
		t.Errorf("it runs as %s, was %s: it was restarted", got, run)
	}
	must(t, time.Minute, "lab", "service", "start", third, "storage", "--name", labName)
	whole(t)
	if after := boots(t); after[home] != before[home] {
		t.Errorf("%s has booted", home)
	}
	refused(t, exitConflict, []string{"not drained"}, "node", "undrain", home)
}

// showDisk is the name of a VM's last volume.
func showDisk(t *testing.T, vm string) string {
	t.Helper()
	var v struct {
		Spec struct {
			Disks []struct {
				Volume string `json:"volume"`
			} `json:"disks"`
		} `json:"spec"`
	}
	decode(t, must(t, time.Minute, "vm", "show", vm, "-o", "json"), &v)
	if len(v.Spec.Disks) == 0 {
		t.Fatalf("vm %s has no disk", vm)
	}
	return v.Spec.Disks[len(v.Spec.Disks)-1].Volume
}

// A rolling restart that is called off lets the node that is on its way come back,
// and begins no other.
func TestRollingRestartIsCalledOff(t *testing.T) {
	heals(t)
	before := boots(t)
	restart := start(5*time.Minute, "cluster", "restart", "--rolling")
	eventually(t, time.Minute, "a node to be off", func() bool {
		return slices.ContainsFunc(labStatus(t).Nodes, func(n labclient.Node) bool { return n.Power == labclient.Off || n.Boots > before[n.Name] })
	})
	must(t, time.Minute, "cluster", "restart", "--cancel")
	restart.fails(t, "cancelled after 1 of 3 nodes")
	nodesReady(t)
	total := 0
	for name, n := range boots(t) {
		total += n - before[name]
	}
	if total != 1 {
		t.Errorf("%d nodes were restarted, not one", total)
	}
	whole(t)
}

// A reboot moves the VM away and back. One without drain powers guests off by their
// button: they start elsewhere, and with HA off wait for the node, with
// --no-failback, too.
func TestNodeReboot(t *testing.T) {
	long(t)
	web, own := newGuest(t, "web", 1), newGuest(t, "own", 2, "--ha", "off")
	heals(t) // before the machines are deleted
	must(t, time.Minute, "vm", "start", "web")
	home := awayFromFirst(t, "web")
	must(t, time.Minute, "vm", "start", "own")
	if v := waitVM(t, "own", "running", running); v.Status.Node != home {
		must(t, 2*time.Minute, "vm", "migrate", "own", home)
	}
	webBoot, ownBoot := web.up(t, "").Boot, own.up(t, "").Boot
	web.fill(t)
	own.fill(t)
	began, before := time.Now(), boots(t)

	if out := must(t, 5*time.Minute, "node", "reboot", home); !strings.Contains(out, "is back") {
		t.Errorf("reboot: %s", out)
	}
	runsOn(t, "web", home)
	runsOn(t, "own", home)
	for _, g := range []struct {
		*guest
		boot string
	}{{web, webBoot}, {own, ownBoot}} {
		if st := g.up(t, ""); st.Boot != g.boot || st.Pressed > 0 {
			t.Errorf("%s did not move: boot %s, was %s; button pressed %d times", g.name, st.Boot, g.boot, st.Pressed)
		}
	}
	nodesReady(t)
	whole(t)

	web.post(t, "/button?hold=1")
	reboot := start(5*time.Minute, "node", "reboot", home, "--no-drain", "--no-failback")
	web.pressed(t, 1)
	waitVM(t, "own", "off, to wait for "+home, off)
	web.powersOff(t)
	webBoot = web.up(t, webBoot).Boot
	waitVM(t, "web", "running elsewhere", func(v vmSheet) bool { return running(v) && v.Status.Node != home })
	reboot.works(t)
	own.up(t, ownBoot)
	runsOn(t, "own", home)
	nodesReady(t)
	if v := showVM(t, "web"); v.Status.Node == home || web.up(t, "").Boot != webBoot {
		t.Errorf("web went back to %s although told not to", home)
	}
	web.filled(t)
	own.filled(t)
	if n := boots(t)[home]; n != before[home]+2 {
		t.Errorf("%s has booted %d times, not twice", home, n-before[home])
	}
	noPlug(t, began)
	noAlarm(t, began, time.Now(), "node "+home, "goes down, as asked")
	whole(t)
}

// More machines than a node may move at a time leave it in turns, and come back in
// turns; so do those that people move.
func TestMovesInTurns(t *testing.T) {
	long(t)
	heals(t)
	const machines, limit = 5, 2
	must(t, time.Minute, "node", "drain", "n1")
	must(t, time.Minute, "node", "drain", "n3")
	var names []string
	var made []*command
	for i := range machines {
		names = append(names, "turn"+string(rune('1'+i)))
		made = append(made, start(2*time.Minute, "vm", "create", names[i], "--memory", "64MiB", "--disk", "size=64MiB", "--start"))
	}
	defer func() {
		var gone []*command
		for _, n := range names {
			gone = append(gone, start(time.Minute, "vm", "stop", n, "--force"))
		}
		for i, n := range names {
			gone[i].works(t)
			gone[i] = start(time.Minute, "vm", "delete", n, "--confirm", n)
		}
		for _, c := range gone {
			c.works(t)
		}
	}()
	for _, c := range made {
		c.works(t)
	}
	must(t, time.Minute, "node", "undrain", "n1")
	must(t, time.Minute, "node", "undrain", "n3")
	runs := map[string]string{}
	for _, n := range names {
		runsOn(t, n, "n2")
		runs[n] = showVM(t, n).Status.Run
	}
	turns := watchMoves(t)
	must(t, 3*time.Minute, "node", "drain", "n2")
	for _, n := range names {
		if v := showVM(t, n); v.Status.Node == "n2" || !running(v) {
			t.Errorf("%s is %s on %s after the drain", n, v.Status.State, v.Status.Node)
		}
	}
	must(t, time.Minute, "node", "undrain", "n2")
	for _, n := range names {
		runsOn(t, n, "n2")
	}
	var moved []*command
	for _, n := range names {
		moved = append(moved, start(3*time.Minute, "vm", "migrate", n, "n3"))
	}
	for _, c := range moved {
		c.works(t)
	}
	if most := turns(); most > limit || most == 0 {
		t.Errorf("%d machines moved at one time, want 1 to %d", most, limit)
	}
	for _, n := range names {
		if v := showVM(t, n); v.Status.Node != "n3" || v.Status.Run != runs[n] {
			t.Errorf("%s is on %s as %s, was %s", n, v.Status.Node, v.Status.Run, runs[n])
		}
	}
}

// watchMoves asks all the time how many machines move; the function returned ends
// that and tells the most.
func watchMoves(t *testing.T) (most func() int) {
	stop, max := make(chan struct{}), 0
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			select {
			case <-stop:
				return
			case <-time.After(20 * time.Millisecond):
			}
			var vs []vmSheet
			out, err := cli(time.Minute, "vm", "list", "-o", "json")
			if err != nil || json.Unmarshal([]byte(out), &vs) != nil {
				continue
			}
			n := 0
			for _, v := range vs {
				if v.Status.State == "migrating" {
					n++
				}
			}
			if n > max {
				max = n
			}
		}
	})
	end := sync.OnceFunc(func() { close(stop); wg.Wait() })
	t.Cleanup(end)
	return func() int { end(); return max }
}
