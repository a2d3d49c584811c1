package space

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"roseau/internal/base/size"
)

// Exit codes, as `roseau --help` and docs promise them.
const (
	exitInvalid   = 2
	exitNotFound  = 3
	exitConflict  = 4
	exitExhausted = 6
)

// refused demands an exit code, and words in the message.
func (l *lab) refused(code int, words []string, args ...string) {
	l.t.Helper()
	out, err := l.try(time.Minute, args...)
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != code {
		l.t.Errorf("roseau %s: %v, want exit code %d\n%s", strings.Join(args, " "), err, code, out)
	}
	for _, w := range words {
		if !strings.Contains(out, w) {
			l.t.Errorf("roseau %s: the message does not say %q:\n%s", strings.Join(args, " "), w, out)
		}
	}
}

type diskRow struct {
	Node    string `json:"node"`
	Path    string `json:"path"`
	Name    string `json:"name"`
	Pool    string `json:"pool"`
	State   string `json:"state"`
	Content string `json:"content"`
}

// at is what `disk list` says of a bay, claimed disks that are gone left out.
func (l *lab) at(node, bay string) (found diskRow) {
	l.t.Helper()
	var list struct {
		Disks []diskRow `json:"disks"`
	}
	l.json(&list, "disk", "list")
	for _, d := range list.Disks {
		if d.Node == node && strings.HasSuffix(d.Path, "/"+bay) && (found.Node == "" || d.Name == "") {
			found = d
		}
	}
	return found
}

// told is what the cluster was told of a claimed disk.
func (l *lab) told(disk string) (state string, used size.Bytes) {
	l.t.Helper()
	var d struct {
		Status struct {
			State string     `json:"state"`
			Used  size.Bytes `json:"used"`
		} `json:"status"`
	}
	l.json(&d, "disk", "show", disk)
	return d.Status.State, d.Status.Used
}

// load writes to a volume until it is ended, each round with another pattern to the
// same place, and demands that every round works.
type load struct {
	stop chan struct{}
	done sync.WaitGroup
	last int // the pattern that is there; read after end
	err  error
}

// Where the load writes, behind the data that is only read.
const loadAt = "write -P %d 500M 16M"

func (l *lab) load(node, socket string, from int) *load {
	x := &load{stop: make(chan struct{}), last: from}
	x.done.Go(func() {
		for {
			select {
			case <-x.stop:
				return
			default:
			}
			next := x.last%250 + 1
			out, err := l.io(2*time.Minute, node, socket, fmt.Sprintf(loadAt, next), "flush", "read -P 7 0 4M")
			if err != nil || strings.Contains(out, "failed") {
				x.err = fmt.Errorf("round %d: %w\n%s", next, errors.Join(err, errors.New("qemu-io")), out)
				return
			}
			x.last = next
		}
	})
	return x
}

// end stops the load and returns its last pattern.
func (x *load) end(t *testing.T) int {
	t.Helper()
	close(x.stop)
	x.done.Wait()
	if x.err != nil {
		t.Fatalf("under load: %v", x.err)
	}
	return x.last
}

// holds reads all data on each node, as a guest there would.
func (l *lab) holds(pattern int) {
	l.t.Helper()
	for _, n := range []string{"n1", "n2", "n3"} {
		s := l.serve("data", n)
		l.mustIO(n, s, "read -P 7 0 480M", fmt.Sprintf("read -P %d 500M 16M", pattern))
		l.must(time.Minute, "volume", "unserve", "data")
	}
}

// whole demands three copies in sync, on the disks that are named.
func (l *lab) whole(disks ...string) {
	l.t.Helper()
	v := l.volume("data")
	var on []string
	for _, c := range v.Copies {
		on = append(on, c.Disk)
		if !c.InSync {
			l.t.Errorf("the copy on %s is not in sync", c.Disk)
		}
	}
	slices.Sort(on)
	slices.Sort(disks)
	if v.Status.Health != "healthy" || v.Status.Copies != 3 || !slices.Equal(on, disks) {
		l.t.Errorf("volume data is %s with %d copies on %v, want 3 on %v", v.Status.Health, v.Status.Copies, on, disks)
	}
}

// A disk dies under load and one in another bay of its node takes its place; then a
// new one comes into its bay and takes that one's place while it lives. What cannot be
// is refused before anything is done.
func TestDiskReplace(t *testing.T) {
	if os.Getenv("ROSEAU_E2E_LONG") == "" {
		t.Skip("it takes long; `make e2e` runs it")
	}
	l := up(t, "--nodes", "3", "--disks", "2", "--disk-size", "1GiB")
	// One disk a node is in the pool; the second of n2 is not even claimed.
	for _, d := range []string{"n1-d2", "n2-d2", "n3-d2"} {
		l.must(time.Minute, "disk", "remove", d, "--confirm", d)
	}
	if d := l.at("n2", "d2"); d.State != "free" || d.Name != "" {
		t.Errorf("a disk that was given back: %+v", d)
	}
	l.must(time.Minute, "volume", "create", "data", "--size", "560MiB")
	s := l.serve("data", "n1")
	l.mustIO("n1", s, "write -P 7 0 480M", "flush")
	l.whole("n1-d1", "n2-d1", "n3-d1")

	l.wait(time.Minute, "the use of the disks told", func() bool {
		_, n1 := l.told("n1-d1")
		_, n3 := l.told("n3-d1")
		return n1 >= 480*size.MiB && n3 >= 480*size.MiB
	})

	load := l.load("n1", s, 0)
	l.must(time.Minute, "lab", "disk", "pull", "n2/d1")
	l.wait(time.Minute, "without the disk that was pulled", func() bool {
		state, _ := l.told("n2-d1")
		return l.volume("data").Status.Copies == 2 && state == "missing"
	})
	l.refused(exitNotFound, []string{"n2-d2", "disk claim NODE/PATH"}, "disk", "replace", "n2-d1", "n2-d2")
	l.refused(exitNotFound, []string{"n2-d9", "disk list"}, "disk", "replace", "n2-d9", "n1-d1")
	l.refused(exitInvalid, []string{"same disk"}, "disk", "replace", "n2-d1", "n2-d1")
	l.refused(exitConflict, []string{"n2-d1 is missing", "disk show n2-d1"}, "disk", "replace", "n3-d1", "n2-d1")
	l.refused(exitExhausted, []string{"replace disk n2-d1 by n3-d1", "are free there", "larger disk"}, "disk", "replace", "n2-d1", "n3-d1")
	l.must(time.Minute, "disk", "claim", "n3/d2")
	l.refused(exitConflict, []string{"2 failure domains", "3 copies", "disk claim"}, "disk", "replace", "n2-d1", "n3-d2")
	l.refused(exitConflict, []string{"holds copies"}, "disk", "remove", "n2-d1", "--confirm", "n2-d1")

	l.foreign("n2", "d2")
	l.refused(exitConflict, []string{"n2/", "d2", "ext4", "disk wipe n2/"}, "disk", "claim", "n2/d2")
	l.must(time.Minute, "disk", "wipe", "n2/d2", "--confirm", "n2/d2")
	l.must(time.Minute, "disk", "claim", "n2/d2")
	if d := l.at("n2", "d2"); d.Name != "n2-d2" || d.Pool != "" || d.State != "active" {
		t.Errorf("the new disk: %+v", d)
	}
	dry := l.must(time.Minute, "disk", "replace", "n2-d1", "n2-d2", "--dry-run")
	if !strings.Contains(dry, "n2-d2 joins pool pool1") || !strings.Contains(dry, "would rebuild 1 segments of n2-d1 to n2-d2") {
		t.Errorf("dry run: %s", dry)
	}
	if d := l.at("n2", "d2"); d.Pool != "" || l.volume("data").on("n2-d2") {
		t.Errorf("a dry run has done something: %+v", d)
	}
	began := time.Now()
	out := l.must(3*time.Minute, "disk", "replace", "n2-d1", "n2-d2")
	t.Logf("a dead disk replaced in %s: %s", time.Since(began).Round(time.Second), out)
	l.whole("n1-d1", "n2-d2", "n3-d1") // at once: that is what it waited for
	last := load.end(t)
	l.must(time.Minute, "volume", "unserve", "data")
	l.holds(last)

	// The old one is forgotten, though it cannot be reached; its bay takes another.
	if out := l.must(time.Minute, "disk", "remove", "n2-d1", "--confirm", "n2-d1"); !strings.Contains(out, "forgotten") {
		t.Errorf("remove of a dead disk: %s", out)
	}
	l.refused(exitNotFound, []string{"n2-d1"}, "disk", "show", "n2-d1")
	l.must(time.Minute, "lab", "disk", "insert", "n2/d1")
	l.refused(exitConflict, []string{"roseau", "disk wipe n2/"}, "disk", "claim", "n2/d1")
	l.must(time.Minute, "disk", "wipe", "n2/d1", "--confirm", "n2/d1")
	l.must(time.Minute, "disk", "claim", "n2/d1")

	// A living one: its copies move, and there are never fewer of them.
	s = l.serve("data", "n2")
	load = l.load("n2", s, last)
	stop, watched := make(chan struct{}), make(chan string, 1)
	go func() { watched <- l.fewest(stop) }()
	began = time.Now()
	out = l.must(3*time.Minute, "disk", "replace", "n2-d2", "n2-d1")
	t.Logf("a living disk replaced in %s: %s", time.Since(began).Round(time.Second), out)
	close(stop)
	if s := <-watched; s != "" {
		t.Errorf("while it was replaced: %s", s)
	}
	l.whole("n1-d1", "n2-d1", "n3-d1")
	last = load.end(t)
	l.must(time.Minute, "volume", "unserve", "data")
	l.holds(last)
	if out := l.must(time.Minute, "disk", "list"); !strings.Contains(out, "empty: nothing is on it any more") {
		t.Errorf("disk list does not say that n2-d2 is empty:\n%s", out)
	}
	l.must(time.Minute, "disk", "remove", "n2-d2", "--confirm", "n2-d2")
	if d := l.at("n2", "d2"); d.State != "free" || d.Name != "" {
		t.Errorf("a disk that was replaced and removed: %+v", d)
	}
}

// fewest watches the volume until it is told to stop, and says when it had fewer than
// three copies in sync.
func (l *lab) fewest(stop chan struct{}) string {
	for {
		select {
		case <-stop:
			return ""
		case <-time.After(200 * time.Millisecond):
		}
		out, err := l.try(time.Minute, "volume", "list", "-o", "json")
		if err == nil && !strings.Contains(out, `"health": "healthy"`) {
			return out
		}
	}
}

// foreign puts a file system on a disk of a node that nobody uses.
func (l *lab) foreign(node, bay string) {
	l.t.Helper()
	path := l.at(node, bay).Path
	l.must(time.Minute, "lab", "exec", node, "--", "mke2fs", "-q", "-F", "-t", "ext4", path)
	if d := l.at(node, bay); d.State == "free" || !strings.Contains(d.Content, "ext4") {
		l.t.Errorf("a disk with a file system: %+v", d)
	}
}
