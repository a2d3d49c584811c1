package drill

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"time"
)

// Line is the round for people, on one line.
func (r RoundResult) Line() string {
	verdict := "passed"
	if !r.Passed {
		verdict = "FAILED: " + strings.Join(r.Failed, "; ")
	}
	rows := ""
	if r.Rows > 0 {
		rows = fmt.Sprintf(" and %d rows", r.Rows)
	}
	return fmt.Sprintf("round %d: %s: %s; restarts %d, longest gap %s, whole after %s, %d writes%s acknowledged, %d lost",
		r.Number, r.Faults, verdict, r.Restarts, r.LongestGap.Round(time.Millisecond), r.Healed.Round(100*time.Millisecond), r.Acked, rows, r.Lost)
}

// SoakMeta says where a record comes from.
type SoakMeta struct {
	Command string
	Seed    uint64
}

// WriteSoakReport writes the sums over all rounds and the table of them.
func WriteSoakReport(w io.Writer, rounds []RoundResult, m SoakMeta) error {
	var acked, lost, twice, restarts, failed int
	kinds := map[string]int{}
	var versions []string
	rows := 0
	for _, r := range rounds {
		if !slices.Contains(versions, r.Version) {
			versions = append(versions, r.Version)
		}
		rows += r.Rows
		acked, lost, twice, restarts = acked+r.Acked, lost+r.Lost, twice+r.Twice, restarts+r.Restarts
		if !r.Passed {
			failed++
		}
		for f := range strings.SplitSeq(r.Faults, ", ") {
			name, _, _ := strings.Cut(f, " ")
			kinds[name]++
		}
	}
	var b strings.Builder
	first, last := rounds[0].Began, rounds[len(rounds)-1].Began
	fmt.Fprintf(&b, "# Random faults\n\n%s to %s UTC, version %s, seed %d. Command: `%s`.\n\n", first.UTC().Format("2006-01-02 15:04"), last.UTC().Format("2006-01-02 15:04"), strings.Join(versions, ", "), m.Seed, m.Command)
	fmt.Fprintf(&b, "%d rounds, %d failed; %d flushed writes acknowledged to a recorder outside, %d lost; %d VMs run twice (frames on the VM network); %d restarts of VMs.\n\n", len(rounds), failed, acked, lost, twice, restarts)
	if rows > 0 {
		fmt.Fprintf(&b, "One VM has PostgreSQL with data checksums on ext4. After each round every row of the last %d that it committed and told outside is looked for (column rows), "+
			"and amcheck, pg_checksums and, after each boot and each round, e2fsck look at everything. Beside it fio writes and verifies "+
			"(column fio: passes since the VM's last boot), what it wrote before the faults is verified after them, and so is each block that it was writing "+
			"when the power failed: an earlier pass's or a later one's, whole.\n\n", rowsChecked)
	}
	var names []string
	for k := range kinds {
		names = append(names, k)
	}
	slices.Sort(names)
	fmt.Fprint(&b, "| fault | times |\n|---|---:|\n")
	for _, k := range names {
		fmt.Fprintf(&b, "| %s | %d |\n", k, kinds[k])
	}
	fmt.Fprint(&b, "\n| round | faults | result | restarts | longest gap | whole after | acked | rows | fio | lost | load |\n|---:|---|---|---:|---:|---:|---:|---:|---:|---:|---|\n")
	for _, r := range rounds {
		verdict := "passed"
		if !r.Passed {
			verdict = "**failed**: " + strings.Join(r.Failed, "; ")
		}
		fmt.Fprintf(&b, "| %d | %s | %s | %d | %.0f ms | %.1f s | %d | %d | %d | %d | %s |\n", r.Number, r.Faults, verdict, r.Restarts,
			ms(r.LongestGap), r.Healed.Seconds(), r.Acked, r.Rows, r.FioPasses, r.Lost, r.Load)
	}
	_, err := io.WriteString(w, b.String())
	return err
}
