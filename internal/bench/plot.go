package bench

import (
	"fmt"
	"html"
	"io"
	"math"
	"strings"
)

// The plot: for each job a group of bars, one a target, on a logarithmic scale
// relative to quorum.
const (
	plotWidth  = 860
	plotLabels = 270 // left of the bars
	barHeight  = 11
	groupSpace = 14
	plotTop    = 46
	plotLow    = 0.05 // of quorum, at the left edge
	plotHigh   = 20
)

var colours = map[string]string{Raw: "#b9c4bd", QemuNBD: "#8aa597", Quorum: "#5b6f90", Ceph: "#b0703c", Roseau: "#1b7a43"}

// Plot writes the result as SVG.
func (r *Result) Plot(w io.Writer) error {
	var b strings.Builder
	height := plotTop + len(r.Options.Jobs)*(len(r.Targets)*barHeight+groupSpace) + 24
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" font-family="system-ui,sans-serif" font-size="12">`+"\n", plotWidth, height)
	fmt.Fprintf(&b, `<rect width="%d" height="%d" fill="#ffffff"/>`+"\n", plotWidth, height)
	x := plotLabels
	for _, t := range r.Targets {
		fmt.Fprintf(&b, `<rect x="%d" y="8" width="12" height="12" fill="%s"/><text x="%d" y="18">%s</text>`+"\n", x, colours[t], x+17, html.EscapeString(t))
		x += 110
	}
	for _, v := range []float64{0.1, 0.2, 0.5, 1, 2, 5, 10} {
		at := position(v)
		fmt.Fprintf(&b, `<line x1="%.1f" y1="%d" x2="%.1f" y2="%d" stroke="%s"/><text x="%.1f" y="%d" text-anchor="middle" fill="#55635b">%gx</text>`+"\n",
			at, plotTop-6, at, height-20, map[bool]string{true: "#5b6f90", false: "#e3e9e5"}[v == 1], at, height-6, v)
	}
	y := plotTop
	for _, job := range r.Options.Jobs {
		fmt.Fprintf(&b, `<text x="%d" y="%d" text-anchor="end">%s</text>`+"\n", plotLabels-8, y+len(r.Targets)*barHeight/2+4, html.EscapeString(job.Name))
		for _, t := range r.Targets {
			if v := r.ratio(job.ID, t, Quorum); v > 0 {
				from, to := position(1), position(v)
				fmt.Fprintf(&b, `<rect x="%.1f" y="%d" width="%.1f" height="%d" fill="%s"><title>%s: %.2f of quorum, %.0f %s</title></rect>`+"\n",
					math.Min(from, to), y, math.Max(math.Abs(to-from), 1.5), barHeight-2, colours[t], html.EscapeString(t), v, r.median(job.ID, t), job.unit())
			}
			y += barHeight
		}
		y += groupSpace
	}
	b.WriteString("</svg>\n")
	_, err := io.WriteString(w, b.String())
	return err
}

// position of a ratio on the x axis.
func position(v float64) float64 {
	v = min(max(v, plotLow), plotHigh)
	return plotLabels + (plotWidth-plotLabels-20)*math.Log(v/plotLow)/math.Log(plotHigh/plotLow)
}
