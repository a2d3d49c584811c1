package guard

import (
	"image/color"
	"strings"
	"testing"
)

// TestReadPPM: a small screen, and what a hostile QEMU could leave there.
func TestReadPPM(t *testing.T) {
	img, err := readPPM(strings.NewReader("P6\n2 1\n255\n\x01\x02\x03\xff\x00\n"))
	if err != nil || img.Bounds().Dx() != 2 || img.RGBAAt(0, 0) != (color.RGBA{1, 2, 3, 255}) || img.RGBAAt(1, 0) != (color.RGBA{255, 0, 10, 255}) {
		t.Errorf("%v %v", img, err)
	}
	for _, bad := range []string{"", "root:x:0:0", "P6\n2 1\n65535\n", "P6\n-1 1\n255\n", "P6\n8192 8192\n255\n", "P6\n99999999 99999999\n255\n", "P6\n2 2\n255\n123456"} {
		if _, err := readPPM(strings.NewReader(bad)); err == nil {
			t.Errorf("%q was read", bad)
		}
	}
}
