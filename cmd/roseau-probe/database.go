package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"roseau/internal/drill/probe"
)

// Where the database's disk is, and what is where below dbRoot.
const (
	dbRootDevice = "/dev/vdb1"
	dbDataDevice = "/dev/vdb2"
	dbRoot       = "/db"
	dbData       = "/data" // as the database sees it
	pgBin        = "/usr/lib/postgresql/15/bin/"
	pgUser       = 100
	keptRows     = 50_000 // older ones are deleted
)

// database is PostgreSQL on ext4 on the guest's second disk. Its life is one
// goroutine's; mu guards what others read.
type database struct {
	mu        sync.Mutex
	st        probe.DBStatus
	recorders map[net.Conn]struct{}
	load      chan struct{} // closed to stop the running load; nil when none runs
	loading   sync.WaitGroup

	server *exec.Cmd
	sql    *session
}

// startDatabase begins to bring the database up if the guest has its disk.
func startDatabase(mux *http.ServeMux) error {
	if _, err := os.Stat(dbRootDevice); err != nil {
		return nil // a guest without
	}
	d := &database{recorders: map[net.Conn]struct{}{}}
	acks, err := net.Listen("tcp4", fmt.Sprintf(":%d", probe.DBAckPort))
	if err != nil {
		return err
	}
	go d.acceptRecorders(acks)
	go d.bringUp()
	mux.HandleFunc("GET /db", d.handleStatus)
	mux.HandleFunc("POST /db/load", d.handleLoad)
	mux.HandleFunc("GET /db/rows", d.handleRows)
	mux.HandleFunc("POST /db/audit", d.handleAudit)
	serveFio(mux)
	return nil
}

func (d *database) acceptRecorders(l net.Listener) {
	for {
		c, err := l.Accept()
		if err != nil {
			fmt.Println("roseau-probe: accept:", err)
			return
		}
		d.mu.Lock()
		d.recorders[c] = struct{}{}
		d.mu.Unlock()
	}
}

func (d *database) stage(name string) {
	fmt.Println("roseau-probe: database:", name)
	d.mu.Lock()
	d.st.Stage = name
	d.mu.Unlock()
}

// bringUp makes or checks the file system, makes the database the first time,
// and starts it.
func (d *database) bringUp() {
	err := d.mountRoot()
	if err == nil {
		err = d.checkAtBoot()
	}
	if err == nil {
		err = d.initialise()
	}
	if err == nil {
		err = d.start()
	}
	if err == nil {
		err = d.schema()
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if err != nil {
		d.st.Error = err.Error()
		fmt.Println("roseau-probe: database:", err)
		return
	}
	d.st.Ready, d.st.Stage = true, "serving"
}

func (d *database) mountRoot() error {
	d.stage("mounting its root")
	for _, m := range []struct {
		what, where, kind string
		flags             uintptr
	}{
		{dbRootDevice, dbRoot, "ext4", unix.MS_RDONLY}, {"/dev", dbRoot + "/dev", "", unix.MS_BIND}, {"proc", dbRoot + "/proc", "proc", 0},
		{"tmpfs", dbRoot + "/tmp", "tmpfs", 0}, {"tmpfs", dbRoot + "/run", "tmpfs", 0},
	} {
		if m.where == dbRoot {
			if err := os.MkdirAll(dbRoot, 0o755); err != nil {
				return err
			}
		}
		if err := unix.Mount(m.what, m.where, m.kind, m.flags, ""); err != nil {
			return fmt.Errorf("mount %s: %w", m.where, err)
		}
	}
	return errors.Join(os.Chmod(dbRoot+"/tmp", 0o1777), os.Chmod(dbRoot+"/run", 0o1777))
}

// tool runs a program of the database's root and returns its output.
func tool(uid uint32, name string, args ...string) (string, error) {
	cmd := command(uid, name, args...)
	out, err := cmd.CombinedOutput()
	return strings.TrimSpace(string(out)), err
}

func command(uid uint32, name string, args ...string) *exec.Cmd {
	cmd := exec.Command(name, args...)
	cmd.Dir = "/"
	cmd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/tmp", "LC_ALL=C"}
	cmd.SysProcAttr = &syscall.SysProcAttr{Chroot: dbRoot, Credential: &syscall.Credential{Uid: uid, Gid: uid}}
	return cmd
}

// checkAtBoot lets the kernel replay the journal, as it does on any machine, and
// then has e2fsck look at everything: nothing may be left to repair.
func (d *database) checkAtBoot() error {
	made, err := hasExt4(dbDataDevice)
	if err != nil {
		return err
	}
	if !made {
		d.stage("making its file system")
		if out, err := tool(0, "/sbin/mke2fs", "-q", "-t", "ext4", dbDataDevice); err != nil {
			return fmt.Errorf("mke2fs: %w: %s", err, out)
		}
		return d.mountData()
	}
	d.stage("checking its file system")
	if err := d.mountData(); err != nil {
		return err
	}
	if err := unix.Unmount(dbRoot+dbData, 0); err != nil {
		return fmt.Errorf("unmount %s: %w", dbData, err)
	}
	out, err := tool(0, "/sbin/e2fsck", "-fn", dbDataDevice)
	d.mu.Lock()
	d.st.Fsck, d.st.FsckFixed = out, err != nil
	d.mu.Unlock()
	if err != nil {
		return fmt.Errorf("e2fsck after the journal's replay: %w: %s", err, out)
	}
	return d.mountData()
}

func (d *database) mountData() error {
	if err := unix.Mount(dbDataDevice, dbRoot+dbData, "ext4", 0, "errors=remount-ro"); err != nil {
		return fmt.Errorf("mount %s: %w", dbData, err)
	}
	return nil
}

// hasExt4 reports whether the device has an ext4 superblock.
func hasExt4(device string) (bool, error) {
	f, err := os.Open(device)
	if err != nil {
		return false, err
	}
	defer f.Close()
	magic := make([]byte, 2)
	if _, err := f.ReadAt(magic, 1024+0x38); err != nil {
		return false, fmt.Errorf("read %s: %w", device, err)
	}
	return magic[0] == 0x53 && magic[1] == 0xef, nil
}

// initialise makes the database under another name first, so that one that lost
// its power half-way is made anew.
func (d *database) initialise() error {
	pg, fresh := filepath.Join(dbRoot, dbData, "pg"), filepath.Join(dbRoot, dbData, "pg.new")
	if _, err := os.Stat(pg); err == nil {
		return nil
	}
	d.stage("making the database")
	if err := errors.Join(os.RemoveAll(fresh), os.Chown(dbRoot+dbData, pgUser, pgUser)); err != nil {
		return err
	}
	out, err := tool(pgUser, pgBin+"initdb", "-D", dbData+"/pg.new", "--data-checksums", "-A", "trust", "-U", "postgres", "--locale=C", "-E", "UTF8", "--no-instructions")
	if err != nil {
		return fmt.Errorf("initdb: %w: %s", err, out)
	}
	unix.Sync()
	return os.Rename(fresh, pg)
}

// start runs the server and connects to it.
func (d *database) start() error {
	d.stage("starting the database")
	cmd := command(pgUser, pgBin+"postgres", "-D", dbData+"/pg", "-c", "listen_addresses=", "-c", "unix_socket_directories=/run",
		"-c", "shared_buffers=16MB", "-c", "max_connections=8", "-c", "dynamic_shared_memory_type=mmap", "-c", "jit=off",
		"-c", "max_wal_senders=0", "-c", "wal_level=minimal", "-c", "max_wal_size=64MB", "-c", "min_wal_size=32MB", "-c", "checkpoint_timeout=30s")
	log, err := cmd.StderrPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	d.server = cmd
	go d.readLog(log)
	for range 600 { // crash recovery takes its time
		if _, err := tool(pgUser, pgBin+"pg_isready", "-q", "-h", "/run"); err == nil {
			d.sql, err = openSession()
			return err
		}
		time.Sleep(100 * time.Millisecond)
	}
	return errors.New("the database did not answer within a minute")
}

func (d *database) readLog(r io.Reader) {
	for sc := bufio.NewScanner(r); sc.Scan(); {
		line := sc.Text()
		d.mu.Lock()
		if strings.Contains(line, "automatic recovery in progress") {
			d.st.Recovered = true
		}
		if strings.Contains(line, "PANIC") || strings.Contains(line, "invalid page") || strings.Contains(line, "checksum") && strings.Contains(line, "WARNING") {
			d.st.Error = line
		}
		d.mu.Unlock()
		fmt.Println("postgres:", line)
	}
}

func (d *database) schema() error {
	return d.sql.exec("CREATE EXTENSION IF NOT EXISTS amcheck; CREATE TABLE IF NOT EXISTS ledger (seq bigint PRIMARY KEY, pad text NOT NULL, sum text NOT NULL);" +
		" CREATE TABLE IF NOT EXISTS hot (n bigint); INSERT INTO hot SELECT 0 WHERE NOT EXISTS (SELECT FROM hot);")
}

// stop ends load and server; a fast shutdown writes a checkpoint.
func (d *database) stop() error {
	d.stopLoad()
	if d.sql != nil {
		d.sql.close()
		d.sql = nil
	}
	if err := d.server.Process.Signal(syscall.SIGINT); err != nil {
		return err
	}
	return d.server.Wait()
}

// runLoad commits row after row and acknowledges each.
func (d *database) runLoad(stop chan struct{}, seq uint64, pause time.Duration) {
	defer d.loading.Done()
	for ; ; seq++ {
		select {
		case <-stop:
			return
		default:
		}
		begin := uptime()
		err := d.sql.exec(fmt.Sprintf("INSERT INTO ledger SELECT seq, pad, %s FROM (SELECT %d::bigint AS seq, repeat(md5(random()::text), 16) AS pad) x ON CONFLICT DO NOTHING;"+
			" UPDATE hot SET n = n + 1; DELETE FROM ledger WHERE seq = %d - %d;", probe.RowSum, seq, seq, keptRows))
		took := uptime() - begin
		d.mu.Lock()
		d.st.Longest = max(d.st.Longest, took)
		if err != nil {
			d.st.Error, d.st.Load = fmt.Sprintf("commit row %d: %v", seq, err), false
			d.mu.Unlock()
			return
		}
		d.st.Committed = seq
		for c := range d.recorders {
			c.SetWriteDeadline(time.Now().Add(30 * time.Second))
			if _, err := c.Write([]byte(probe.Ack(seq))); err != nil {
				c.Close()
				delete(d.recorders, c)
			}
		}
		d.mu.Unlock()
		time.Sleep(pause)
	}
}

func (d *database) stopLoad() {
	d.mu.Lock()
	if d.load != nil {
		close(d.load)
		d.load, d.st.Load = nil, false
	}
	d.mu.Unlock()
	d.loading.Wait()
}

func (d *database) handleStatus(w http.ResponseWriter, _ *http.Request) {
	d.mu.Lock()
	defer d.mu.Unlock()
	json.NewEncoder(w).Encode(d.st)
}

// handleLoad starts the load at row ?from, or stops it with ?stop=1.
func (d *database) handleLoad(w http.ResponseWriter, r *http.Request) {
	from, _ := strconv.ParseUint(r.FormValue("from"), 10, 64)
	d.stopLoad()
	if r.FormValue("stop") != "" {
		return
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.st.Ready {
		http.Error(w, "the database is not ready: "+d.st.Stage+" "+d.st.Error, http.StatusConflict)
		return
	}
	d.load, d.st.Load = make(chan struct{}), true
	d.loading.Add(1)
	go d.runLoad(d.load, max(from, 1), 5*time.Millisecond)
}

// handleRows answers one line a run of present rows, "first last", and a last
// line "bad N" with the number of rows whose checksum is wrong. The load must
// not run.
func (d *database) handleRows(w http.ResponseWriter, _ *http.Request) {
	var out bytes.Buffer
	for _, q := range []string{
		"SELECT min(seq) || ' ' || max(seq) FROM (SELECT seq, seq - row_number() OVER (ORDER BY seq) AS g FROM ledger) t GROUP BY g ORDER BY min(seq);",
		"SELECT 'bad ' || count(*) FROM ledger WHERE sum <> " + probe.RowSum + ";",
	} {
		lines, err := d.sql.query(q)
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		for _, l := range lines {
			fmt.Fprintln(&out, l)
		}
	}
	w.Write(out.Bytes())
}

// handleAudit has amcheck look at every index and at the rows, stops the
// database, has pg_checksums and e2fsck look at everything, and starts it again.
func (d *database) handleAudit(w http.ResponseWriter, _ *http.Request) {
	a, err := d.audit()
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	json.NewEncoder(w).Encode(a)
}

func (d *database) audit() (a probe.DBAudit, err error) {
	d.mu.Lock()
	ready := d.st.Ready
	d.st.Ready = false
	d.mu.Unlock()
	if !ready {
		return a, errors.New("the database is not ready")
	}
	d.stage("being audited")
	problem := func(what string, err error) {
		if err != nil {
			a.Problems = append(a.Problems, fmt.Sprintf("%s: %v", what, err))
		}
	}
	a.Indexes, err = d.amcheck()
	problem("amcheck", err)
	if err := d.stop(); err != nil {
		return a, fmt.Errorf("stop the database: %w", err)
	}
	a.Checksums, err = tool(pgUser, pgBin+"pg_checksums", "--check", "-D", dbData+"/pg")
	problem("pg_checksums", err)
	if err := unix.Unmount(dbRoot+dbData, 0); err != nil {
		return a, fmt.Errorf("unmount %s: %w", dbData, err)
	}
	a.Fsck, err = tool(0, "/sbin/e2fsck", "-fn", dbDataDevice)
	problem("e2fsck", err)
	if err := d.mountData(); err != nil {
		return a, err
	}
	if err := d.start(); err != nil {
		return a, err
	}
	d.mu.Lock()
	d.st.Ready, d.st.Stage = true, "serving"
	d.mu.Unlock()
	return a, nil
}

// amcheck compares every index with its table, and looks at the pages of the
// rows. It returns how many indexes it saw.
func (d *database) amcheck() (indexes int, err error) {
	lines, err := d.sql.query("SELECT count(bt_index_parent_check(c.oid, true)) FROM pg_class c JOIN pg_index i ON i.indexrelid = c.oid JOIN pg_am a ON a.oid = c.relam" +
		" WHERE a.amname = 'btree' AND c.relpersistence = 'p' AND i.indisready AND i.indisvalid;" +
		" SELECT 'bad ' || blkno || ' ' || msg FROM verify_heapam('ledger') UNION ALL SELECT 'bad ' || blkno || ' ' || msg FROM verify_heapam('hot');")
	if err != nil {
		return 0, err
	}
	if len(lines) != 1 {
		return 0, fmt.Errorf("%s", strings.Join(lines, "; "))
	}
	return strconv.Atoi(lines[0])
}

// session is one psql that takes statements and prints what they return.
type session struct {
	cmd *exec.Cmd
	in  io.WriteCloser
	out *bufio.Scanner
	n   int
}

func openSession() (*session, error) {
	cmd := command(pgUser, pgBin+"psql", "-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-h", "/run", "-U", "postgres", "-d", "postgres")
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	cmd.Stderr = os.Stdout
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	return &session{cmd: cmd, in: in, out: bufio.NewScanner(out)}, nil
}

// query sends statements, each a transaction of its own, and returns the lines
// of their results. With an error psql ends, and so does the session.
func (s *session) query(sql string) ([]string, error) {
	s.n++
	mark := fmt.Sprintf("end-%d", s.n)
	if _, err := fmt.Fprintf(s.in, "%s\n\\echo %s\n", sql, mark); err != nil {
		return nil, fmt.Errorf("psql: %w", err)
	}
	var lines []string
	for s.out.Scan() {
		if s.out.Text() == mark {
			return lines, nil
		}
		lines = append(lines, s.out.Text())
	}
	return nil, fmt.Errorf("psql ended: %s", strings.Join(lines, " "))
}

func (s *session) exec(sql string) error {
	_, err := s.query(sql)
	return err
}

func (s *session) close() {
	s.in.Close()
	s.cmd.Wait()
}
