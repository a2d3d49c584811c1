// Package errs names the kinds of error that Roseau distinguishes and attaches
// hints for operators. It is a leaf: HTTP status and exit codes are mapped from
// kinds in package api and package cli, once each.
//
// An error has a kind when errors.Is(err, kind) holds. Wrap with %w as usual:
//
//	return fmt.Errorf("open volume %s: %w", id, errs.NotFound)
//
// or build one with New, which also carries a hint.
package errs

import (
	"errors"
	"fmt"
)

// The kinds. Compare with errors.Is, or ask Kind.
var (
	Invalid     = errors.New("invalid")       // the request itself is wrong
	NotFound    = errors.New("not found")     // the object named does not exist
	Conflict    = errors.New("conflict")      // the object is in a state, or has a revision, that forbids it
	NotLeader   = errors.New("not leader")    // another node must be asked
	Fenced      = errors.New("fenced")        // the caller's epoch or lease is over
	Unavailable = errors.New("unavailable")   // try again later: a node, quorum or copy is away
	Corrupt     = errors.New("corrupt")       // bytes are provably not what was written
	Exhausted   = errors.New("exhausted")     // space, memory or a limit ran out
	Denied      = errors.New("not permitted") // authenticated or not, the caller may not do that
)

var kinds = []error{Invalid, NotFound, Conflict, NotLeader, Fenced, Unavailable, Corrupt, Exhausted, Denied}

// Kind returns the first kind that err has, or nil for an error without a kind
// (an internal error).
func Kind(err error) error {
	for _, k := range kinds {
		if errors.Is(err, k) {
			return k
		}
	}
	return nil
}

// ByName returns the kind whose text is name, or nil.
func ByName(name string) error {
	for _, k := range kinds {
		if k.Error() == name {
			return k
		}
	}
	return nil
}

// Error is an error with a kind, a text and a remedy.
type Error struct {
	kind error
	msg  string
	hint string
	err  error // wrapped cause; nil if none
}

// New returns an error of the given kind. The text follows "verb object id:
// cause", lower case; %w works as in fmt.Errorf.
func New(kind error, format string, args ...any) *Error {
	w := fmt.Errorf(format, args...)
	return &Error{kind: kind, msg: w.Error(), err: errors.Unwrap(w)}
}

// WithHint returns e with the remedy that an operator should read.
func (e *Error) WithHint(format string, args ...any) *Error {
	c := *e
	c.hint = fmt.Sprintf(format, args...)
	return &c
}

// Error returns the text without the hint.
func (e *Error) Error() string { return e.msg }

// Unwrap makes errors.Is see the kind and the cause.
func (e *Error) Unwrap() []error {
	if e.err != nil {
		return []error{e.kind, e.err}
	}
	return []error{e.kind}
}

// Hint returns the remedy of the outermost error in err's chain that has one,
// or "".
func Hint(err error) string {
	var e *Error
	for errors.As(err, &e) {
		if e.hint != "" {
			return e.hint
		}
		if e.err == nil {
			return ""
		}
		err = e.err
	}
	return ""
}
