package ids

import "testing"

func TestRoundTrip(t *testing.T) {
	a := New()
	b, err := Parse(a.String())
	if err != nil || a != b || a.IsZero() || a.Compare(b) != 0 {
		t.Fatalf("%v %v %v", a, b, err)
	}
	var c ID
	text, _ := a.MarshalText()
	if err := c.UnmarshalText(text); err != nil || c != a {
		t.Fatal(c, err)
	}
	if err := c.UnmarshalText(nil); err != nil || !c.IsZero() {
		t.Fatal("empty text is the zero id")
	}
	for _, s := range []string{"", "x", a.String()[1:], "g" + a.String()[1:]} {
		if _, err := Parse(s); err == nil {
			t.Errorf("Parse(%q) succeeded", s)
		}
	}
}
