package sim

import (
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"roseau/internal/base/errs"
)

// Progress is a long set of seeds as it stands: every seed below Next has run.
// A file of it lets the set go on after an interruption.
type Progress struct {
	Version  string         `json:"version"` // of the program that ran them all
	First    uint64         `json:"first"`
	Next     uint64         `json:"next"`
	Requests int            `json:"operations_wanted"` // of each seed
	Ops      int            `json:"operations"`
	Seconds  float64        `json:"seconds"` // of all sittings together
	Sittings int            `json:"sittings"`
	Counts   map[string]int `json:"counts"`
	Failed   []Failure      `json:"failed,omitempty"`
}

// Failure is a seed that failed, and why.
type Failure struct {
	Seed uint64 `json:"seed"`
	Text string `json:"text"`
}

// LoadProgress reads a file of progress, or begins a new one if there is none. A
// file of another version, first seed or number of operations is refused: the
// counts of two engines do not add up.
func LoadProgress(file, version string, first uint64, ops int) (Progress, error) {
	p := Progress{Version: version, First: first, Next: first, Requests: ops, Counts: map[string]int{}}
	b, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return p, nil
	}
	if err != nil {
		return p, errs.New(errs.Invalid, "read progress %s: %w", file, err)
	}
	was := p
	if err := json.Unmarshal(b, &was); err != nil {
		return p, errs.New(errs.Corrupt, "read progress %s: %w", file, err).WithHint("remove it to begin anew")
	}
	if was.Version != version || was.First != first || was.Requests != ops {
		return p, errs.New(errs.Conflict, "progress %s: it is of version %s, first seed %d, %d operations; this is %s, %d, %d", file, was.Version, was.First, was.Requests, version, first, ops).
			WithHint("go on with the program and the flags that began it, or name another file")
	}
	return was, nil
}

// save replaces the file as a whole.
func (p Progress) save(file string) error {
	b, err := json.MarshalIndent(p, "", " ")
	if err != nil {
		return err
	}
	tmp := file + ".new"
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(tmp, append(b, '\n'), 0o644); err != nil {
		return err
	}
	return os.Rename(tmp, file)
}

// take adds the outcome of the next seed.
func (p *Progress) take(r Result) {
	p.Next = r.Seed + 1
	p.Ops += r.Ops
	for k, v := range r.Counts {
		p.Counts[k] += v
	}
	if r.Err != nil {
		p.Failed = append(p.Failed, Failure{r.Seed, r.Err.Error()})
	}
}

// progressKeeper takes results in any order and keeps a file of those that are without a
// gap before them.
type progressKeeper struct {
	file    string
	p       Progress
	waiting map[uint64]Result // finished, and a seed before is not
	saved   time.Time
	before  float64 // seconds of earlier sittings
	began   time.Time
	err     error
}

func newKeeper(file string, p Progress) *progressKeeper {
	p.Sittings++
	return &progressKeeper{file: file, p: p, waiting: map[uint64]Result{}, before: p.Seconds, began: time.Now(), saved: time.Now()}
}

func (k *progressKeeper) add(r Result) {
	k.waiting[r.Seed] = r
	for {
		next, ok := k.waiting[k.p.Next]
		if !ok {
			break
		}
		delete(k.waiting, next.Seed)
		k.p.take(next)
	}
	if time.Since(k.saved) > 2*time.Second {
		k.flush()
	}
}

func (k *progressKeeper) flush() {
	k.saved = time.Now()
	k.p.Seconds = k.before + time.Since(k.began).Seconds()
	k.err = k.p.save(k.file)
}
