package guard

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"image"
	"image/color"
	"image/png"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"roseau/internal/base/ids"
	"roseau/internal/driver/ctlsock"
	"roseau/internal/driver/guardctl"
)

const (
	screenTimeout = 5 * time.Second
	// maxScreen bounds what is read: the video memory (8 MiB) holds no larger picture
	// of 8 bits a colour.
	maxScreen = 32 << 20
	maxSide   = 8192
)

// screenshot answers with the guest's screen. QEMU writes it as PPM, which every
// build of it can; a VM whose I/O stalls answers nothing and is refused.
func (g *guard) screenshot(w http.ResponseWriter, r *http.Request) {
	s, err := g.takeScreenshot(r.Context())
	if err != nil {
		ctlsock.Refuse(w, conflict("screenshot of vm %s: %v", g.cfg.Name, err))
		return
	}
	w.Header().Set("Content-Type", "application/json")
	if err := json.NewEncoder(w).Encode(s); err != nil {
		g.log.Debug("answer screenshot", "cause", err)
	}
}

func (g *guard) takeScreenshot(ctx context.Context) (*guardctl.Screenshot, error) {
	mon := g.monitorNow()
	if mon == nil {
		return nil, errNoMonitor
	}
	// QEMU's user writes only here; a name of its own, for two may ask at once.
	path := filepath.Join(g.files.qemuDir(), "screen-"+ids.New().Short()+".ppm")
	defer g.files.remove(path)
	if err := runQMP(ctx, mon, screenTimeout, "screendump", map[string]any{"filename": path}, nil); err != nil {
		return nil, err
	}
	// What stands there is QEMU's: no link is followed, nothing but a file is read.
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if st, err := f.Stat(); err != nil || !st.Mode().IsRegular() {
		return nil, fmt.Errorf("what QEMU wrote is no file (%v)", err)
	}
	img, err := readPPM(io.LimitReader(f, maxScreen))
	if err != nil {
		return nil, err
	}
	var out bytes.Buffer
	if err := png.Encode(&out, img); err != nil {
		return nil, err
	}
	return &guardctl.Screenshot{PNG: out.Bytes(), Width: img.Rect.Dx(), Height: img.Rect.Dy()}, nil
}

// readPPM decodes "P6 width height 255" and three bytes a pixel.
func readPPM(r io.Reader) (*image.RGBA, error) {
	br := bufio.NewReader(r)
	var width, height, depth int
	if _, err := fmt.Fscanf(br, "P6\n%d %d\n%d\n", &width, &height, &depth); err != nil {
		return nil, fmt.Errorf("read screen: %w", err)
	}
	if width < 1 || height < 1 || width > maxSide || height > maxSide || depth != 255 || width*height*3 > maxScreen {
		return nil, fmt.Errorf("read screen: %d x %d pixels of depth %d are not understood", width, height, depth)
	}
	line := make([]byte, width*3)
	img := image.NewRGBA(image.Rect(0, 0, width, height))
	for y := range height {
		if _, err := io.ReadFull(br, line); err != nil {
			return nil, fmt.Errorf("read screen: line %d of %d: %w", y, height, err)
		}
		for x := range width {
			img.SetRGBA(x, y, color.RGBA{R: line[x*3], G: line[x*3+1], B: line[x*3+2], A: 255})
		}
	}
	return img, nil
}
