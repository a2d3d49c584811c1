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
	return fmt.Sprintf("round %d: %s: %s; restarts %d, longest gap %s, whole after %s, %d writes acknowledged, %d lost",
		r.Number, r.Faults, verdict, r.Restarts, r.LongestGap.Round(time.Millisecond), r.Healed.Round(100*time.Millisecond), r.Acked, r.Lost)
}

// SoakMeta says where a record comes from.
type SoakMeta struct {
	Command, Version string
	Seed             uint64
}

// WriteSoakReport writes the sums over all rounds and the table of them.
func WriteSoakReport(w io.Writer, rounds []RoundResult, m SoakMeta) error {
	var acked, lost, twice, restarts, failed int
	kinds := map[string]int{}
	for _, r := range rounds {
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
	fmt.Fprintf(&b, "# Random faults\n\n%s to %s UTC, version %s, seed %d. Command: `%s`.\n\n", first.UTC().Format("2006-01-02 15:04"), last.UTC().Format("2006-01-02 15:04"), m.Version, m.Seed, m.Command)
	fmt.Fprintf(&b, "%d rounds, %d failed; %d flushed writes acknowledged to a recorder outside, %d lost; %d VMs run twice (frames on the VM network); %d restarts of VMs.\n\n", len(rounds), failed, acked, lost, twice, restarts)
	var names []string
	for k := range kinds {
		names = append(names, k)
	}
	slices.Sort(names)
	fmt.Fprint(&b, "| fault | times |\n|---|---:|\n")
	for _, k := range names {
		fmt.Fprintf(&b, "| %s | %d |\n", k, kinds[k])
	}
	fmt.Fprint(&b, "\n| round | faults | result | restarts | longest gap | whole after | acked | lost | load |\n|---:|---|---|---:|---:|---:|---:|---:|---|\n")
	for _, r := range rounds {
		verdict := "passed"
		if !r.Passed {
			verdict = "**failed**: " + strings.Join(r.Failed, "; ")
		}
		fmt.Fprintf(&b, "| %d | %s | %s | %d | %.0f ms | %.1f s | %d | %d | %s |\n", r.Number, r.Faults, verdict, r.Restarts,
			ms(r.LongestGap), r.Healed.Seconds(), r.Acked, r.Lost, r.Load)
	}
	_, err := io.WriteString(w, b.String())
	return err
}
