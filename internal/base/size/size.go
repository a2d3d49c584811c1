// Package size has the byte count type that the API and the CLI use.
package size

import (
	"fmt"
	"math"
	"strconv"
	"strings"

	"roseau/internal/base/errs"
)

// Bytes is a number of bytes, never negative in valid specs.
type Bytes int64

// Binary units.
const (
	KiB Bytes = 1 << 10
	MiB Bytes = 1 << 20
	GiB Bytes = 1 << 30
	TiB Bytes = 1 << 40
)

var units = []struct {
	name string
	n    Bytes
}{{"TiB", TiB}, {"GiB", GiB}, {"MiB", MiB}, {"KiB", KiB}}

// String prints the largest binary unit that divides b exactly, else one
// decimal of the largest unit below b: "8GiB", "1.5GiB", "512B".
func (b Bytes) String() string {
	for _, u := range units {
		if b >= u.n && b%u.n == 0 {
			return fmt.Sprintf("%d%s", b/u.n, u.name)
		}
		if b >= u.n {
			return fmt.Sprintf("%.1f%s", float64(b)/float64(u.n), u.name)
		}
	}
	return fmt.Sprintf("%dB", int64(b))
}

// Parse reads "8GiB", "512M", "1.5G", "4096". Units are binary whether written
// KiB, K or KB: a disk of "10G" is 10 GiB, as with qemu-img.
func Parse(s string) (Bytes, error) {
	t := strings.TrimSpace(s)
	i := len(t)
	for i > 0 && (t[i-1] < '0' || t[i-1] > '9') && t[i-1] != '.' {
		i--
	}
	num, unit := t[:i], strings.ToUpper(strings.TrimSpace(t[i:]))
	mult := map[string]Bytes{"": 1, "B": 1, "K": KiB, "KB": KiB, "KIB": KiB, "M": MiB, "MB": MiB, "MIB": MiB,
		"G": GiB, "GB": GiB, "GIB": GiB, "T": TiB, "TB": TiB, "TIB": TiB}[unit]
	f, err := strconv.ParseFloat(num, 64)
	if err != nil || mult == 0 || f < 0 || f*float64(mult) >= math.MaxInt64 {
		return 0, errs.New(errs.Invalid, "parse size %q: want a number and a unit, for example 8GiB, 512MiB or 4096", s)
	}
	return Bytes(f * float64(mult)), nil
}

// MarshalText prints an exact form: a multiple of a unit, or plain bytes.
func (b Bytes) MarshalText() ([]byte, error) {
	for _, u := range units {
		if b >= u.n && b%u.n == 0 {
			return fmt.Appendf(nil, "%d%s", b/u.n, u.name), nil
		}
	}
	return strconv.AppendInt(nil, int64(b), 10), nil
}

// UnmarshalText reads what Parse reads.
func (b *Bytes) UnmarshalText(t []byte) error {
	v, err := Parse(string(t))
	if err != nil {
		return err
	}
	*b = v
	return nil
}
