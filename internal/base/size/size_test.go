package size

import "testing"

func TestParse(t *testing.T) {
	for in, want := range map[string]Bytes{"0": 0, "4096": 4096, "8GiB": 8 * GiB, "1.5G": 3 * GiB / 2, "512 m": 512 * MiB, "10KB": 10 * KiB, "2T": 2 * TiB} {
		if got, err := Parse(in); err != nil || got != want {
			t.Errorf("Parse(%q) = %d, %v; want %d", in, got, err, want)
		}
	}
	for _, in := range []string{"", "x", "-1G", "1X", "1e99T", "GiB", "99999999999T"} {
		if got, err := Parse(in); err == nil {
			t.Errorf("Parse(%q) = %d, want an error", in, got)
		}
	}
}

func TestRoundTrip(t *testing.T) {
	for _, b := range []Bytes{0, 1, 4096, 8 * GiB, 3 * GiB / 2, TiB + 1} {
		text, _ := b.MarshalText()
		var got Bytes
		if err := got.UnmarshalText(text); err != nil || got != b {
			t.Errorf("%d -> %s -> %d, %v", b, text, got, err)
		}
	}
	if s := (3 * GiB / 2).String(); s != "1.5GiB" {
		t.Errorf("String %q", s)
	}
}
