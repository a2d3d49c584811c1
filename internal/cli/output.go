package cli

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"gopkg.in/yaml.v3"
)

// table is aligned text for people.
type table struct {
	rows [][]string
	foot []string
}

// newTable starts a table with its column heads.
func newTable(head ...string) *table { return &table{rows: [][]string{head}} }

// newSheet starts a table without heads, of name and value.
func newSheet() *table { return &table{} }

// row adds a row; values are printed with their String method.
func (t *table) row(cells ...any) *table {
	r := make([]string, len(cells))
	for i, c := range cells {
		r[i] = strings.ReplaceAll(fmt.Sprint(c), "\n", " ")
		if r[i] == "" {
			r[i] = "-"
		}
	}
	t.rows = append(t.rows, r)
	return t
}

// line adds a line of text below the table.
func (t *table) line(format string, args ...any) *table {
	t.foot = append(t.foot, fmt.Sprintf(format, args...))
	return t
}

func (t *table) write(w io.Writer) error {
	var buf bytes.Buffer
	tw := tabwriter.NewWriter(&buf, 0, 0, 2, ' ', 0)
	for _, r := range t.rows {
		fmt.Fprintln(tw, strings.Join(r, "\t"))
	}
	if err := tw.Flush(); err != nil {
		return err
	}
	for _, l := range t.foot {
		fmt.Fprintln(&buf, l)
	}
	_, err := w.Write(buf.Bytes())
	return err
}

func writeJSON(w io.Writer, v any) error {
	enc := json.NewEncoder(w)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	return enc.Encode(v)
}

// writeYAML prints the JSON form as YAML, so that both have the same names.
func writeYAML(w io.Writer, v any) error {
	data, err := json.Marshal(v)
	if err != nil {
		return err
	}
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.UseNumber()
	var generic any
	if err := dec.Decode(&generic); err != nil {
		return err
	}
	enc := yaml.NewEncoder(w)
	enc.SetIndent(2)
	if err := enc.Encode(plainNumbers(generic)); err != nil {
		return err
	}
	return enc.Close()
}

func plainNumbers(v any) any {
	switch x := v.(type) {
	case map[string]any:
		for k := range x {
			x[k] = plainNumbers(x[k])
		}
	case []any:
		for i := range x {
			x[i] = plainNumbers(x[i])
		}
	case json.Number:
		if n, err := x.Int64(); err == nil {
			return n
		}
		if f, err := x.Float64(); err == nil {
			return f
		}
	}
	return v
}

// ago prints how long before now t was: "5s", "3m", "2h", "4d".
func ago(now, t time.Time) string {
	if t.IsZero() {
		return "-"
	}
	d := now.Sub(t)
	switch {
	case d < time.Minute:
		return fmt.Sprintf("%ds", max(0, int(d.Seconds())))
	case d < time.Hour:
		return fmt.Sprintf("%dm", int(d.Minutes()))
	case d < 48*time.Hour:
		return fmt.Sprintf("%dh", int(d.Hours()))
	}
	return fmt.Sprintf("%dd", int(d.Hours()/24))
}

// yes prints a flag in a table.
func yes(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}
