package drill

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"time"

	"roseau/internal/base/errs"
	"roseau/internal/base/size"
	"roseau/internal/drill/probe"
)

// databaseMemory is enough for the guest's kernel, its program and PostgreSQL.
const databaseMemory = 320 * size.MiB

// rowsChecked is how far back rows are looked for; the guest deletes older ones.
const rowsChecked = 40_000

// databaseProbe is a probe VM with PostgreSQL on ext4 and fio on a second disk.
type databaseProbe struct {
	*probeVM
	image string
	rows  *recorder
	seal  uint64 // of what fio wrote before the faults

	mu    sync.Mutex
	acked map[uint64]bool
}

// startDatabase imports the database's disk and creates and boots the VM. On
// error what there is to destroy is returned too.
func (e *Env) startDatabase(ctx context.Context) (*databaseProbe, error) {
	d := &databaseProbe{acked: map[uint64]bool{}}
	name := probeName() + "-db"
	e.say("importing the database's disk as %s", name)
	if err := e.Cluster.ImportImage(ctx, name, e.Database); err != nil {
		return d, err
	}
	d.image = name
	var err error
	d.probeVM, err = e.startProbeWith(ctx, VMRequest{
		Memory: databaseMemory, DiskSize: probe.FillOffset + soakChunks*probe.FillChunkBytes,
		More: []VMDisk{{Image: name, Size: probe.DBDiskBytes}},
	})
	if err != nil {
		return d, err
	}
	d.rows = newRecorder(e.Vantage, netip.AddrPortFrom(d.addr, probe.DBAckPort))
	d.rows.heard = func(seq uint64) {
		d.mu.Lock()
		d.acked[seq] = true
		d.mu.Unlock()
	}
	d.rows.start()
	return d, d.ready(ctx, 6*time.Minute)
}

func (d *databaseProbe) destroy(ctx context.Context) error {
	var err error
	if d.rows != nil {
		d.rows.close()
	}
	if d.probeVM != nil {
		err = d.probeVM.destroy(ctx)
	}
	if d.image != "" {
		err = errors.Join(err, d.env.Cluster.DeleteImage(ctx, d.image))
	}
	return err
}

func (d *databaseProbe) dbStatus(ctx context.Context) (st probe.DBStatus, err error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	body, err := d.call(ctx, "GET", "/db")
	if err != nil {
		return st, fmt.Errorf("ask the guest for its database: %w", err)
	}
	return st, json.Unmarshal(body, &st)
}

// ready waits until the database serves; what its checkers found at boot is an
// error.
func (d *databaseProbe) ready(ctx context.Context, limit time.Duration) error {
	var st probe.DBStatus
	err := waitUntil(ctx, limit, 500*time.Millisecond, "the database", func() (ok bool, err error) {
		if st, err = d.dbStatus(ctx); err != nil || st.Ready || st.Error != "" {
			return err == nil, err
		}
		return false, errs.New(errs.Unavailable, "the guest is %s", st.Stage)
	})
	if err == nil && st.Error != "" {
		err = errs.New(errs.Corrupt, "database of VM %s, %s: %s", d.name, st.Stage, st.Error)
	}
	if err == nil && st.FsckFixed {
		err = errs.New(errs.Corrupt, "file system of VM %s after the journal's replay: %s", d.name, st.Fsck)
	}
	return err
}

// last is the newest row whose commit was heard of.
func (d *databaseProbe) last() uint64 { return d.rows.last() }

func (d *databaseProbe) startRows(ctx context.Context) error {
	if err := d.rows.waitConnected(ctx, 20*time.Second); err != nil {
		return err
	}
	before := d.rows.count()
	if err := d.post(ctx, fmt.Sprintf("/db/load?from=%d", d.last()+2)); err != nil {
		return err
	}
	return waitUntil(ctx, time.Minute, 50*time.Millisecond, "committed rows", func() (bool, error) {
		return d.rows.count() > before+5, nil
	})
}

// startFio writes the sealed half, and begins the passes of the other.
func (d *databaseProbe) startFio(ctx context.Context, seed uint64) error {
	long, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	d.seal = seed
	if _, err := d.call(long, "POST", fmt.Sprintf("/fio/seal?seed=%d", seed)); err != nil {
		return fmt.Errorf("write with fio: %w", err)
	}
	if _, err := d.call(long, "POST", fmt.Sprintf("/fio/loop?seed=%d", seed<<16)); err != nil {
		return fmt.Errorf("begin fio's passes: %w", err)
	}
	return nil
}

// auditFio ends the passes, verifies that every block is one that a pass wrote,
// whole, though the power failed in the midst of it, and verifies the half that was
// written before the faults. passes are those since the guest's last boot.
func (d *databaseProbe) auditFio(ctx context.Context) (passes int, err error) {
	long, cancel := context.WithTimeout(ctx, 5*time.Minute)
	defer cancel()
	if _, err := d.call(long, "POST", "/fio/loop?stop=1"); err != nil {
		return 0, fmt.Errorf("stop fio: %w", err)
	}
	body, err := d.call(long, "GET", "/fio")
	if err != nil {
		return 0, fmt.Errorf("ask for fio: %w", err)
	}
	var st probe.FioStatus
	if err := json.Unmarshal(body, &st); err != nil {
		return 0, err
	}
	if st.Error != "" {
		return st.Passes, errs.New(errs.Corrupt, "fio that verified while the faults lasted: %s", st.Error)
	}
	if _, err := d.call(long, "POST", "/fio/whole"); err != nil {
		return st.Passes, fmt.Errorf("verify with fio the blocks that it was writing: %w", err)
	}
	if _, err := d.call(long, "POST", fmt.Sprintf("/fio/verify?seed=%d", d.seal)); err != nil {
		return st.Passes, fmt.Errorf("verify with fio what it wrote before the faults: %w", err)
	}
	return st.Passes, nil
}

// auditRows stops the rows, looks for every acknowledged one, and has the
// guest's checkers look at everything.
func (d *databaseProbe) auditRows(ctx context.Context) (acked, lost int, problems []string, err error) {
	if err := d.ready(ctx, 5*time.Minute); err != nil {
		return 0, 0, nil, err
	}
	if err := d.post(ctx, "/db/load?stop=1"); err != nil {
		return 0, 0, nil, err
	}
	long, cancel := context.WithTimeout(ctx, 5*time.Minute)
	defer cancel()
	body, err := d.call(long, "GET", "/db/rows")
	if err != nil {
		return 0, 0, nil, fmt.Errorf("read the rows back: %w", err)
	}
	present, bad, err := parseRows(string(body))
	if err != nil {
		return 0, 0, nil, err
	}
	if bad > 0 {
		problems = append(problems, fmt.Sprintf("%d rows with a wrong checksum", bad))
	}
	d.mu.Lock()
	for seq := range d.acked {
		if seq+rowsChecked < d.last() {
			delete(d.acked, seq)
			continue
		}
		acked++
		if !present.has(seq) {
			lost++
		}
	}
	d.mu.Unlock()
	body, err = d.call(long, "POST", "/db/audit")
	if err != nil {
		return acked, lost, problems, fmt.Errorf("audit the database: %w", err)
	}
	var a probe.DBAudit
	if err := json.Unmarshal(body, &a); err != nil {
		return acked, lost, problems, err
	}
	for _, p := range a.Problems {
		problems = append(problems, fmt.Sprintf("%s (%s; %s)", p, a.Checksums, a.Fsck))
	}
	return acked, lost, problems, nil
}

// rowRuns are runs of present rows, first and last, ascending.
type rowRuns [][2]uint64

func (r rowRuns) has(seq uint64) bool {
	for _, run := range r {
		if seq >= run[0] && seq <= run[1] {
			return true
		}
	}
	return false
}

// parseRows reads what GET /db/rows answers.
func parseRows(text string) (runs rowRuns, bad int, err error) {
	ended := false
	for line := range strings.Lines(text) {
		a, b, _ := strings.Cut(strings.TrimSpace(line), " ")
		if a == "bad" {
			bad, err = strconv.Atoi(b)
			ended = true
			continue
		}
		first, err1 := strconv.ParseUint(a, 10, 64)
		last, err2 := strconv.ParseUint(b, 10, 64)
		if err := errors.Join(err1, err2); err != nil {
			return nil, 0, errs.New(errs.Corrupt, "read the rows back: %q: %w", line, err)
		}
		runs = append(runs, [2]uint64{first, last})
	}
	if !ended && err == nil {
		err = errs.New(errs.Unavailable, "read the rows back: the answer broke off")
	}
	return runs, bad, err
}
