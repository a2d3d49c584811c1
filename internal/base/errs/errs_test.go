package errs

import (
	"errors"
	"fmt"
	"io"
	"testing"
)

func TestKindAndHint(t *testing.T) {
	e := New(NotFound, "open volume %s: %w", "v1", io.EOF).WithHint("create it with %q", "roseau volume create v1")
	w := fmt.Errorf("start vm web: %w", e)
	if Kind(w) != NotFound || !errors.Is(w, io.EOF) || errors.Is(w, Conflict) {
		t.Fatalf("kind %v of %v", Kind(w), w)
	}
	if got := w.Error(); got != "start vm web: open volume v1: EOF" {
		t.Fatalf("text %q", got)
	}
	if got := Hint(w); got != `create it with "roseau volume create v1"` {
		t.Fatalf("hint %q", got)
	}
	if Kind(io.EOF) != nil || Hint(io.EOF) != "" {
		t.Fatal("an error without a kind has one")
	}
	inner := New(Invalid, "a").WithHint("h")
	if got := Hint(New(Conflict, "b: %w", inner)); got != "h" {
		t.Fatalf("inner hint %q", got)
	}
	if ByName("fenced") != Fenced || ByName("x") != nil {
		t.Fatal("ByName")
	}
}
