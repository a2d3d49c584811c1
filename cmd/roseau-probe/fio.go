package main

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"
	"sync"

	"roseau/internal/drill/probe"
)

const fioDevice = "/dev/vdb3"

// verifier runs Debian's fio on a partition of the guest's second disk.
type verifier struct {
	mu     sync.Mutex
	st     probe.FioStatus
	stop   chan struct{} // closed to end the passes; nil when none are made
	passes sync.WaitGroup
}

// serveFio adds the verifier's interface: GET /fio, POST /fio/loop?seed (?stop=1
// waits for the pass under way), POST /fio/whole, POST /fio/seal?seed and
// POST /fio/verify?seed.
func serveFio(mux *http.ServeMux) {
	v := &verifier{}
	mux.HandleFunc("GET /fio", func(w http.ResponseWriter, _ *http.Request) {
		v.mu.Lock()
		defer v.mu.Unlock()
		json.NewEncoder(w).Encode(v.st)
	})
	mux.HandleFunc("POST /fio/loop", v.handleLoop)
	mux.HandleFunc("POST /fio/whole", handleWhole)
	mux.HandleFunc("POST /fio/seal", sealed("--do_verify=0", "--end_fsync=1"))
	mux.HandleFunc("POST /fio/verify", sealed("--verify_only"))
}

// fio runs one job.
func fio(args ...string) error {
	args = append([]string{"--name=v", "--filename=" + fioDevice, "--ioengine=libaio", "--direct=1", "--thread=1", "--minimal", "--verify_fatal=1"}, args...)
	out, err := tool(0, "/usr/bin/fio", args...)
	if err != nil {
		return fmt.Errorf("fio: %w: %s", err, out[max(0, len(out)-500):])
	}
	return nil
}

// sealed handles a job over the second half, which is written before a fault and
// verified after it. Every 16 bytes are seed and place: fio's checksums alone
// would not tell the blocks of an earlier seal.
func sealed(args ...string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		seed, err := strconv.ParseUint(r.FormValue("seed"), 10, 64)
		if err != nil {
			http.Error(w, "seed: want a number", http.StatusBadRequest)
			return
		}
		half := fmt.Sprint(probe.FioBytes / 2)
		if err := fio(append([]string{"--rw=write", "--bs=64k", "--iodepth=4", "--offset=" + half, "--size=" + half,
			"--verify=pattern", fmt.Sprintf("--verify_pattern=0x%016x%%o", seed)}, args...)...); err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
		}
	}
}

// looped are the arguments of every job on the first half: each block of 4 KiB has
// fio's header and checksum, so that it can be verified whoever wrote it.
func looped(args ...string) []string {
	return append([]string{fmt.Sprint("--size=", probe.FioBytes/2), "--verify=crc32c", "--verify_interval=4k"}, args...)
}

// handleWhole verifies that each block of the first half is one that some pass
// wrote, whole: whatever was under way when the power failed.
func handleWhole(w http.ResponseWriter, _ *http.Request) {
	if err := fio(looped("--rw=read", "--bs=64k", "--iodepth=4")...); err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
	}
}

// handleLoop begins passes of writing and verifying at ?seed, or ends them. Before
// them the whole half is written once.
func (v *verifier) handleLoop(w http.ResponseWriter, r *http.Request) {
	v.mu.Lock()
	if v.stop != nil {
		close(v.stop)
		v.stop = nil
	}
	v.mu.Unlock()
	v.passes.Wait()
	if r.FormValue("stop") != "" {
		return
	}
	seed, err := strconv.ParseUint(r.FormValue("seed"), 10, 64)
	if err != nil {
		http.Error(w, "seed: want a number", http.StatusBadRequest)
		return
	}
	if err := fio(looped("--rw=write", "--bs=64k", "--iodepth=4", "--do_verify=0", "--end_fsync=1", fmt.Sprint("--randseed=", seed))...); err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	v.stop, v.st.Running = make(chan struct{}), true
	v.passes.Add(1)
	go v.loop(v.stop, seed)
}

func (v *verifier) loop(stop chan struct{}, seed uint64) {
	defer v.passes.Done()
	for ; ; seed++ {
		select {
		case <-stop:
			v.note(nil, false)
			return
		default:
		}
		err := fio(looped(fmt.Sprint("--randseed=", seed), "--rw=randwrite", "--bsrange=4k-64k", "--blockalign=4k", "--iodepth=8", "--verify_backlog=64", "--fsync=64")...)
		v.note(err, err == nil)
		if err != nil {
			return
		}
	}
}

// note counts a pass that verified; without one the passes have ended.
func (v *verifier) note(err error, pass bool) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if pass {
		v.st.Passes++
		return
	}
	v.st.Running = false
	if err != nil {
		v.st.Error = err.Error()
	}
}
