package cli

import (
	"bufio"
	"errors"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"roseau/internal/base/clock"
	"roseau/internal/base/errs"
	"roseau/internal/base/ids"
	"roseau/internal/block/disk"
	"roseau/internal/storage"
)

// newStorageCmd is the storage process itself, and without it the offline tools
// for a disk.
func newStorageCmd(a *app) *cobra.Command {
	var debug bool
	cmd := &cobra.Command{Use: "storage", Short: "Serve this machine's disks (run by the service manager)", Args: cobra.NoArgs, RunE: func(cmd *cobra.Command, _ []string) error {
		return storage.Run(cmd.Context(), storage.Options{Log: processLog(debug), Clock: clock.System{}, Lab: storage.LabNode()})
	}}
	cmd.Flags().BoolVar(&debug, "debug", false, "log more")
	cmd.AddCommand(newFsckCmd(a), newDumpCmd(a))
	return cmd
}

func newFsckCmd(a *app) *cobra.Command {
	f := fsckFlags{app: a}
	cmd := &cobra.Command{Use: "fsck PATH", Short: "Check a disk that no process uses; writes nothing without --repair", Args: cobra.ExactArgs(1),
		Long: `Check a disk that no process uses: superblock copies, volume table, the chain of the log, extent images, with --data all data against its checksums.

Findings are notes (legal), warnings (a second copy of metadata is broken, nothing is lost) and damage. Exit code 0: no damage and no warnings,
7: some, 4: a process has the disk open, 2: not a disk of Roseau, or of a newer version.

--repair DISK --confirm DISK (its id, which a check prints) writes broken superblock copies anew from two that agree; nothing else is provably right.`,
		RunE: func(cmd *cobra.Command, args []string) error { return f.run(cmd, args[0]) }}
	cmd.Flags().BoolVar(&f.data, "data", false, "compare all data with its checksums (reads the whole disk)")
	cmd.Flags().StringVar(&f.repair, "repair", "", "id of the disk whose superblock copies are to be written")
	cmd.Flags().StringVar(&f.confirm, "confirm", "", "the same id again")
	return cmd
}

func newDumpCmd(a *app) *cobra.Command {
	cmd := &cobra.Command{Use: "dump PATH", Short: "Print what is on a disk that no process uses, one item a line", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if a.output == "yaml" {
				return errs.New(errs.Invalid, "flag -o yaml: a dump is text, or json, one object a line")
			}
			w := bufio.NewWriter(cmd.OutOrStdout())
			var failed error
			_, err := storage.Fsck(args[0], disk.FsckOptions{Dump: func(i disk.Item) {
				switch {
				case failed != nil:
				case a.output == "json":
					failed = i.WriteJSON(w)
				default:
					failed = i.WriteText(w)
				}
			}})
			return errors.Join(err, failed, w.Flush())
		}}
	return cmd
}

type fsckFlags struct {
	*app
	repair, confirm string
	data            bool
}

func (f *fsckFlags) run(cmd *cobra.Command, path string) error {
	w := cmd.OutOrStdout()
	if f.repair != "" || f.confirm != "" {
		id, err := ids.Parse(f.repair)
		switch {
		case err != nil:
			return errs.New(errs.Invalid, "flag --repair %q: want the id of the disk", f.repair).WithHint("a check without --repair prints it")
		case f.confirm != f.repair:
			return errs.New(errs.Invalid, "flag --confirm %q: want %s, the disk to repair, again", f.confirm, f.repair)
		}
		n, err := storage.Repair(path, id)
		if err != nil {
			return err
		}
		if f.output == "" {
			fmt.Fprintf(w, "%d superblock copies written\n", n)
		}
	}
	r, err := storage.Fsck(path, disk.FsckOptions{Data: f.data})
	if err != nil {
		return err
	}
	if f.output == "json" || f.output == "yaml" {
		if err := f.show(cmd, fsckResult(r), nil); err != nil {
			return err
		}
	} else {
		printFsck(w, r, f.data)
	}
	if n := len(r.Problems); n > 0 {
		return errs.New(errs.Corrupt, "check disk %s: %d problems", path, n).WithHint("each finding names its remedy")
	}
	return nil
}

// fsckOutput is the JSON form.
type fsckOutput struct {
	Disk     ids.ID         `json:"disk"`
	Cluster  ids.ID         `json:"cluster"`
	Pool     ids.ID         `json:"pool"`
	Copies   int            `json:"superblock_copies"`
	Volumes  int            `json:"volumes"`
	Extents  int            `json:"extents"`
	Blocks   int            `json:"blocks_compared"`
	Batches  int            `json:"log_batches"`
	Records  int            `json:"log_records"`
	Tail     int64          `json:"torn_tail_bytes"`
	Pending  int            `json:"extents_to_apply"`
	Findings []disk.Finding `json:"findings"`
}

func fsckResult(r *disk.Report) fsckOutput {
	id := r.Superblock.Identity
	return fsckOutput{id.Disk, id.Cluster, id.Pool, r.Copies, len(r.Volumes), r.Extents, r.Blocks, r.Batches, r.Records, r.TailBytes, r.Pending, r.Findings}
}

func printFsck(w io.Writer, r *disk.Report, data bool) {
	fmt.Fprintf(w, "disk %s of cluster %s: %d superblock copies, %d volumes, %d extents\n",
		r.Superblock.Identity.Disk, r.Superblock.Identity.Cluster, r.Copies, len(r.Volumes), r.Extents)
	fmt.Fprintf(w, "log: %d batches, %d records, %d bytes of torn tail, %d extents to apply\n", r.Batches, r.Records, r.TailBytes, r.Pending)
	if data {
		fmt.Fprintf(w, "data: %d blocks compared with their checksums\n", r.Blocks)
	} else {
		fmt.Fprintln(w, "data: not compared (--data does)")
	}
	for _, f := range r.Findings {
		fmt.Fprintln(w, f)
	}
}
