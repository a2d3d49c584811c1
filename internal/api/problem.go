package api

import (
	"errors"
	"fmt"
	"net/http"
	"strings"

	"github.com/danielgtaylor/huma/v2"

	"roseau/internal/base/errs"
)

// Problem is an error as RFC 9457 has it, with Roseau's kind and hint.
type Problem struct {
	Type   string        `json:"type" doc:"always about:blank; look at kind"`
	Title  string        `json:"title" doc:"text of the HTTP status"`
	Status int           `json:"status" doc:"HTTP status"`
	Detail string        `json:"detail" doc:"what was tried, on which object, and why it failed"`
	Kind   string        `json:"kind" doc:"kind of error; clients and exit codes go by it"`
	Hint   string        `json:"hint,omitempty" doc:"what to do about it"`
	Errors []ProblemItem `json:"errors,omitempty" doc:"each field that is wrong"`
}

// ProblemItem names one wrong field.
type ProblemItem struct {
	Field string `json:"field"`
	Text  string `json:"text"`
}

// Error returns the detail.
func (p *Problem) Error() string { return p.Detail }

// GetStatus returns the HTTP status.
func (p *Problem) GetStatus() int { return p.Status }

// ContentType names the media type of problems.
func (p *Problem) ContentType(string) string { return "application/problem+json" }

// statusOf maps kinds to HTTP status, here and nowhere else.
var statusOf = []struct {
	kind   error
	status int
}{
	{errs.Invalid, http.StatusBadRequest},
	{errs.NotFound, http.StatusNotFound},
	{errs.Conflict, http.StatusConflict},
	{errs.NotLeader, http.StatusMisdirectedRequest},
	{errs.Fenced, http.StatusPreconditionFailed},
	{errs.Unavailable, http.StatusServiceUnavailable},
	{errs.Corrupt, http.StatusInternalServerError},
	{errs.Exhausted, http.StatusInsufficientStorage},
	{errs.Denied, http.StatusForbidden},
}

// ProblemOf shows err as a problem; an error without a kind is internal.
func ProblemOf(err error) *Problem {
	var p *Problem
	if errors.As(err, &p) {
		return p
	}
	p = &Problem{Type: "about:blank", Status: http.StatusInternalServerError, Kind: "internal", Detail: err.Error(), Hint: errs.Hint(err)}
	if k := errs.Kind(err); k != nil {
		p.Kind = k.Error()
		for _, s := range statusOf {
			if s.kind == k {
				p.Status = s.status
			}
		}
	}
	p.Title = http.StatusText(p.Status)
	return p
}

// Huma makes errors through a variable of its package; there is one API a
// process, so it is set once, here.
func init() {
	huma.NewError = newProblem
	huma.NewErrorWithContext = func(_ huma.Context, status int, msg string, es ...error) huma.StatusError {
		return newProblem(status, msg, es...)
	}
}

// newProblem is called by huma with a handler's error (status 500) or with what
// its validation found.
func newProblem(status int, msg string, es ...error) huma.StatusError {
	if status == http.StatusInternalServerError && len(es) == 1 && es[0] != nil {
		return ProblemOf(es[0])
	}
	p := &Problem{Type: "about:blank", Title: http.StatusText(status), Status: status, Detail: msg, Kind: "internal"}
	switch {
	case status == http.StatusNotFound:
		p.Kind = errs.NotFound.Error()
	case status >= 400 && status < 500:
		p.Kind = errs.Invalid.Error()
	}
	var parts []string
	for _, e := range es {
		if e == nil {
			continue
		}
		var d huma.ErrorDetailer
		if !errors.As(e, &d) {
			parts = append(parts, e.Error())
			continue
		}
		item := fieldProblem(d.ErrorDetail())
		p.Errors = append(p.Errors, item)
		parts = append(parts, item.Text)
	}
	if len(parts) > 0 {
		p.Detail = "check request: " + strings.Join(parts, "; ")
	}
	return p
}

// fieldProblem says in one line which field is wrong, and its value.
func fieldProblem(d *huma.ErrorDetail) ProblemItem {
	field := strings.TrimPrefix(d.Location, "body.")
	if d.Message == "unexpected property" {
		return ProblemItem{Field: field, Text: fmt.Sprintf("unknown field %q", field)}
	}
	text := fmt.Sprintf("%s: %s", field, d.Message)
	if strings.HasSuffix(field, "password") { // its value is for nobody's screen or log
		return ProblemItem{Field: field, Text: text}
	}
	switch v := d.Value.(type) {
	case nil, map[string]any, []any:
	default:
		text += fmt.Sprintf(" (is %.80q)", fmt.Sprint(v))
	}
	return ProblemItem{Field: field, Text: text}
}
