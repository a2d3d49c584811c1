package bench

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"roseau/internal/base/errs"
)

// state keeps the figures of a run on disk, a line each, so that a run that was
// cut off is gone on with. Its first line says what was measured; figures of
// other settings do not count.
type state struct {
	f    *os.File
	have []Figure
}

type stateHead struct {
	SizeBytes int64  `json:"size_bytes"`
	Runtime   string `json:"runtime"`
}

func openState(o Options) (*state, error) {
	s := &state{}
	if o.State == "" {
		return s, nil
	}
	head := stateHead{o.SizeBytes, o.Runtime.String()}
	if s.load(o.State, head) {
		f, err := os.OpenFile(o.State, os.O_WRONLY|os.O_APPEND, 0)
		s.f = f
		return s, err
	}
	s.have = nil
	if err := os.MkdirAll(filepath.Dir(o.State), 0o755); err != nil {
		return nil, err
	}
	f, err := os.Create(o.State)
	if err != nil {
		return nil, fmt.Errorf("keep figures: %w", err)
	}
	s.f = f
	return s, s.line(head)
}

// load reads what is there; false: nothing that counts.
func (s *state) load(path string, head stateHead) bool {
	f, err := os.Open(path)
	if err != nil {
		return false
	}
	defer f.Close()
	in := bufio.NewScanner(f)
	var h stateHead
	if !in.Scan() || json.Unmarshal(in.Bytes(), &h) != nil || h != head {
		return false
	}
	for in.Scan() {
		var x Figure
		if json.Unmarshal(in.Bytes(), &x) != nil {
			break // the line that was being written
		}
		s.have = append(s.have, x)
	}
	return true
}

// FromState is the result that a state file holds, without measuring anything.
func FromState(o Options) (*Result, error) {
	o.defaults()
	s := &state{}
	if !s.load(o.State, stateHead{o.SizeBytes, o.Runtime.String()}) {
		return nil, errs.New(errs.NotFound, "read figures of %s: none of %d MiB and %v a job", o.State, o.SizeBytes>>20, o.Runtime)
	}
	r := &Result{Options: o, Figures: s.have}
	r.Options.Rounds = 0
	for _, name := range []string{Raw, QemuNBD, Quorum, Ceph, Roseau} {
		if slices.ContainsFunc(s.have, func(f Figure) bool { return f.Target == name }) {
			r.Targets = append(r.Targets, name)
		}
	}
	for _, f := range s.have {
		r.Options.Rounds = max(r.Options.Rounds, f.Round+1)
	}
	return r, nil
}

func (s *state) find(round int, job, target string) (Figure, bool) {
	for _, f := range s.have {
		if f.Round == round && f.Job == job && f.Target == target {
			return f, true
		}
	}
	return Figure{}, false
}

func (s *state) add(f Figure) error {
	if s.f == nil {
		return nil
	}
	return s.line(f)
}

func (s *state) line(v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	_, err = s.f.Write(append(b, '\n'))
	return err
}

func (s *state) close() error {
	if s.f == nil {
		return nil
	}
	return errors.Join(s.f.Sync(), s.f.Close())
}
