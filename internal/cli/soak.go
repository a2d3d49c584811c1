package cli

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"roseau/internal/base/errs"
	"roseau/internal/drill"
)

// soakOptions are the flags of drill soak.
type soakOptions struct {
	minutes, rounds, vms int
	seed, first          uint64
	faults               []string
	controlOnly, db      bool
	record, report       string
	labName, network     string
}

func newDrillSoakCmd(a *app) *cobra.Command {
	var o soakOptions
	cmd := &cobra.Command{Use: "soak", Short: "Random faults for a while, every acknowledged write read back after each round",
		Long: "Torments the lab that is up: VMs write with a flush each while nodes, disks, cables and processes fail by random.\n" +
			"After each round everything must be whole again, every acknowledged write is read back, and the frames on the VM\n" +
			"network must show that no VM ran twice. The seed and a round's number decide what it does. With --record the run\n" +
			"goes on after the last round of the file; --report writes the table of all rounds in it.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return a.soak(cmd, o) },
	}
	f := cmd.Flags()
	f.IntVar(&o.minutes, "minutes", 0, "begin no round later than this (0: --rounds decides)")
	f.IntVar(&o.rounds, "rounds", 0, "rounds in all, those of --record included (0: --minutes decides)")
	f.IntVar(&o.vms, "vms", 2, "VMs that write meanwhile")
	f.Uint64Var(&o.seed, "seed", 1, "of the draw")
	f.Uint64Var(&o.first, "first", 0, "number of the first round, to repeat one")
	f.StringSliceVar(&o.faults, "fault", nil, "only these kinds (default: all)")
	f.BoolVar(&o.controlOnly, "control-plane-only", false, "only faults that no VM may notice")
	f.BoolVar(&o.db, "database", false, "one VM more, with PostgreSQL on ext4: amcheck, pg_checksums and e2fsck after each round (downloads 45 MB of packages once)")
	f.StringVar(&o.record, "record", "", "file to add each round to, one JSON object a line")
	f.StringVar(&o.report, "report", "", "Markdown file to write in the end")
	f.StringVar(&o.labName, "name", "", "lab (default: the lab of the current context)")
	f.StringVar(&o.network, "network", "lan", "network that the VMs are plugged into")
	return cmd
}

func (a *app) soak(cmd *cobra.Command, o soakOptions) error {
	kinds, err := soakKinds(o)
	if err != nil {
		return err
	}
	if o.minutes <= 0 && o.rounds <= 0 {
		return errs.New(errs.Invalid, "run a soak: neither --minutes nor --rounds says when to end").WithHint("roseau drill soak --minutes 10")
	}
	past, err := readRounds(o.record)
	if err != nil {
		return err
	}
	s := drill.Soak{Seed: o.seed, First: o.first, VMs: o.vms, Kinds: kinds, For: time.Duration(o.minutes) * time.Minute}
	if n := len(past); n > 0 && o.first == 0 {
		s.First = past[n-1].Number + 1
	}
	if s.Rounds = o.rounds; o.rounds > 0 {
		if s.Rounds -= len(past); s.Rounds <= 0 {
			fmt.Fprintf(cmd.ErrOrStderr(), "%s has %d rounds already\n", o.record, len(past))
			return writeSoakReport(o, past)
		}
	}
	env, lab, done, err := a.drillEnv(cmd, o.labName, o.network)
	if err != nil {
		return err
	}
	defer done()
	if o.db {
		b, err := guestBuilder()
		if err != nil {
			return err
		}
		if env.Database, err = b.BuildDatabase(cmd.Context()); err != nil {
			return err
		}
	}
	s.Env, s.Rough, s.Frames = env, lab, lab
	s.Done = func(r drill.RoundResult) error {
		past = append(past, r)
		fmt.Fprintln(cmd.OutOrStdout(), r.Line())
		return appendRound(o.record, r)
	}
	return errors.Join(s.Run(cmd.Context()), writeSoakReport(o, past))
}

// soakKinds are the kinds that the flags choose; nil: all.
func soakKinds(o soakOptions) (kinds []drill.FaultKind, err error) {
	var names []string
	for _, k := range drill.FaultKinds {
		names = append(names, k.Name)
		if (len(o.faults) == 0 || slices.Contains(o.faults, k.Name)) && (k.Control || !o.controlOnly) {
			kinds = append(kinds, k)
		}
	}
	for _, f := range o.faults {
		if !slices.Contains(names, f) {
			return nil, errs.New(errs.Invalid, "run a soak: --fault %q: no such kind", f).WithHint("kinds: %s", strings.Join(names, ", "))
		}
	}
	if len(kinds) == 0 {
		return nil, errs.New(errs.Invalid, "run a soak: no kind of fault is left by --fault and --control-plane-only")
	}
	return kinds, nil
}

// readRounds reads a record; "" or an absent file has none.
func readRounds(path string) ([]drill.RoundResult, error) {
	if path == "" {
		return nil, nil
	}
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var out []drill.RoundResult
	for sc := bufio.NewScanner(f); sc.Scan(); {
		var r drill.RoundResult
		if err := json.Unmarshal(sc.Bytes(), &r); err != nil {
			return nil, errs.New(errs.Corrupt, "read record %s, line %d: %w", path, len(out)+1, err).WithHint("remove the file to begin again")
		}
		out = append(out, r)
	}
	return out, nil
}

func appendRound(path string, r drill.RoundResult) error {
	if path == "" {
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	return errors.Join(json.NewEncoder(f).Encode(r), f.Close())
}

func writeSoakReport(o soakOptions, rounds []drill.RoundResult) error {
	if o.report == "" || len(rounds) == 0 {
		return nil
	}
	return writeFile(o.report, func(w io.Writer) error {
		return drill.WriteSoakReport(w, rounds, drill.SoakMeta{Command: soakCommand(o), Seed: o.seed})
	})
}

func soakCommand(o soakOptions) string {
	c := fmt.Sprintf("roseau drill soak --seed %d", o.seed)
	if o.controlOnly {
		c += " --control-plane-only"
	}
	for _, f := range o.faults {
		c += " --fault " + f
	}
	if o.db {
		c += " --database"
	}
	return c
}

func writeFile(path string, write func(io.Writer) error) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	return errors.Join(write(f), f.Close())
}
