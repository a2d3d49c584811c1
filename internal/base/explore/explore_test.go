package explore

import "testing"

// counter is two numbers below top; a step raises one of them.
type counter struct{ top, bad int }

func (c counter) Next(s [2]int, yield func(Step, [2]int)) {
	for i := range s {
		if s[i] < c.top {
			n := s
			n[i]++
			yield(Step{"raise", int8(i), -1}, n)
		}
	}
}

func (c counter) Key(s [2]int) [2]int {
	if s[0] > s[1] {
		s[0], s[1] = s[1], s[0]
	}
	return s
}

func (c counter) Broken(s [2]int) string {
	if c.bad > 0 && s[0]+s[1] == c.bad {
		return "the sum is bad"
	}
	return ""
}

func TestSearch(t *testing.T) {
	r := Search(counter{top: 9}, [][2]int{{0, 0}}, 0)
	if r.States != 55 || !r.Complete || r.Broken != "" || r.Depth != 18 || r.Deadends != 1 {
		t.Fatalf("all: %+v", r)
	}
	r = Search(counter{top: 9, bad: 5}, [][2]int{{0, 0}}, 0)
	if r.Broken == "" || len(r.Trace) != 5 || r.Depth != 5 {
		t.Fatalf("broken: %+v", r)
	}
	if r = Search(counter{top: 9}, [][2]int{{0, 0}}, 20); r.Complete || r.States < 20 || r.States > 22 {
		t.Fatalf("limited: %+v", r)
	}
}
