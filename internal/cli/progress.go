package cli

import (
	"fmt"
	"io"
	"os"

	"github.com/schollz/progressbar/v3"
	"github.com/spf13/cobra"
	"golang.org/x/term"

	"roseau/internal/base/size"
	"roseau/internal/model"
)

// progress shows a task on stderr while it runs: a bar on a terminal, else a
// line when something changes (phase, log, each tenth of the whole).
type progress struct {
	w       io.Writer
	isTerm  bool
	bar     *progressbar.ProgressBar
	phase   string
	logSeen int
	tenth   int64
}

func newProgress(cmd *cobra.Command) *progress {
	p := &progress{w: cmd.ErrOrStderr(), tenth: -1}
	if f, ok := p.w.(*os.File); ok {
		p.isTerm = term.IsTerminal(int(f.Fd()))
	}
	return p
}

func (p *progress) update(t *model.Task) {
	if n := len(t.Log); n > p.logSeen {
		for _, l := range t.Log[p.logSeen:] {
			p.clear()
			fmt.Fprintln(p.w, "  "+l)
		}
		p.logSeen = n
	}
	if p.isTerm {
		p.updateBar(t)
		return
	}
	if t.Phase != p.phase && t.Phase != "" {
		fmt.Fprintf(p.w, "%s: %s\n", t.Action, t.Phase)
		p.phase = t.Phase
	}
	if t.Total > 0 && t.Done*10/t.Total != p.tenth {
		p.tenth = t.Done * 10 / t.Total
		fmt.Fprintf(p.w, "%s: %s\n", t.Action, amount(t))
	}
}

func (p *progress) updateBar(t *model.Task) {
	if p.bar == nil {
		total := t.Total
		if total == 0 {
			total = -1
		}
		p.bar = progressbar.NewOptions64(total,
			progressbar.OptionSetWriter(p.w), progressbar.OptionSetWidth(30), progressbar.OptionShowBytes(t.Unit == "bytes"),
			progressbar.OptionClearOnFinish(), progressbar.OptionSetPredictTime(true), progressbar.OptionSetElapsedTime(true))
	}
	if t.Total > 0 && p.bar.GetMax64() != t.Total {
		p.bar.ChangeMax64(t.Total)
	}
	text := t.Action
	if t.Phase != "" {
		text += ": " + t.Phase
	}
	p.bar.Describe(text)
	if t.Total > 0 && t.Done < t.Total {
		p.bar.Set64(t.Done)
	} else if t.Total == 0 {
		p.bar.Add(1)
	}
}

func (p *progress) clear() {
	if p.bar != nil {
		p.bar.Clear()
	}
}

func (p *progress) close() {
	if p.bar != nil {
		p.bar.Clear()
		p.bar.Exit()
	}
}

func amount(t *model.Task) string {
	if t.Unit == "bytes" {
		return fmt.Sprintf("%s of %s", size.Bytes(t.Done), size.Bytes(t.Total))
	}
	return fmt.Sprintf("%d of %d %s", t.Done, t.Total, t.Unit)
}
