// Package qemuimg runs qemu-img: what is in an image file, and copying between
// images with progress. It names formats by their first bytes itself, so that
// qemu-img never has to guess at a file that a stranger made (a raw disk whose
// first sector looks like another format).
package qemuimg

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"strconv"
	"strings"

	"roseau/internal/base/errs"
	"roseau/internal/base/size"
)

// Binary is what is run.
const Binary = "qemu-img"

// HeadBytes is how much of a file's start Detect wants to see.
const HeadBytes = 64 << 10

// magic lists formats by what stands at an offset.
var magic = []struct {
	at    int
	bytes string
	name  string
}{
	{0, "QFI\xfb", "qcow2"},
	{0, "KDMV", "vmdk"},
	{0, "# Disk DescriptorFile", "vmdk"},
	{0, "<<< ", "vdi"},
	{0, "vhdxfile", "vhdx"},
	{0, "conectix", "vhd"},
	{0, "QED\x00", "qed"},
	{0, "LUKS\xba\xbe", "luks"},
	{0, "\x1f\x8b", "gzip"},
	{0, "\xfd7zXZ\x00", "xz"},
	{0, "BZh", "bzip2"},
	{0, "\x28\xb5\x2f\xfd", "zstd"},
	{0, "PK\x03\x04", "zip"},
	{0, "7z\xbc\xaf\x27\x1c", "7z"},
	{257, "ustar", "tar"},
	{32769, "CD001", "iso"},
}

// Detect names the format of a file by its head; "raw" if nothing else fits.
func Detect(head []byte) string {
	for _, m := range magic {
		if len(head) >= m.at+len(m.bytes) && string(head[m.at:m.at+len(m.bytes)]) == m.bytes {
			if m.name == "qcow2" && len(head) >= 8 && head[7] == 1 {
				return "qcow"
			}
			return m.name
		}
	}
	return "raw"
}

// Info is what qemu-img says of a file.
type Info struct {
	Format      string     `json:"format"`
	VirtualSize size.Bytes `json:"-"`
	Backing     string     `json:"backing-filename"`
	Encrypted   bool       `json:"encrypted"`
	Dirty       bool       `json:"dirty-flag"`
	Specific    struct {
		Data struct {
			DataFile string `json:"data-file"`
			Corrupt  bool   `json:"corrupt"`
		} `json:"data"`
	} `json:"format-specific"`
}

// ParseInfo reads the JSON of `qemu-img info`.
func ParseInfo(data []byte) (*Info, error) {
	var raw struct {
		Info
		VirtualSize int64 `json:"virtual-size"`
	}
	if err := json.Unmarshal(data, &raw); err != nil {
		return nil, errs.New(errs.Invalid, "read image info: %w", err)
	}
	if raw.VirtualSize < 0 {
		return nil, errs.New(errs.Invalid, "read image info: virtual size is %d", raw.VirtualSize)
	}
	raw.Info.VirtualSize = size.Bytes(raw.VirtualSize)
	return &raw.Info, nil
}

// Inspect asks qemu-img about a file of a known format.
func Inspect(ctx context.Context, path, format string) (*Info, error) {
	out, err := exec.CommandContext(ctx, Binary, "info", "--output=json", "-f", format, path).Output()
	if err != nil {
		return nil, fmt.Errorf("inspect image: %w", exitError(err))
	}
	return ParseInfo(out)
}

// exitError makes qemu-img's last line the error.
func exitError(err error) error {
	var ee *exec.ExitError
	if errors.As(err, &ee) {
		lines := strings.Split(strings.TrimSpace(string(ee.Stderr)), "\n")
		return errs.New(errs.Invalid, "%s", strings.TrimPrefix(lines[len(lines)-1], "qemu-img: "))
	}
	if errors.Is(err, exec.ErrNotFound) {
		return errs.New(errs.Unavailable, "%w", err).WithHint("install qemu-utils")
	}
	return err
}

// Convert says what to copy where.
type Convert struct {
	Source       string
	SourceFormat string
	Target       string // opened as raw; it exists
	// TargetIsZero: the target reads as zeros, so zeros need not be written.
	TargetIsZero bool
}

// NBD is the address of an NBD export on a unix socket.
func NBD(socket string) string { return "nbd+unix:///?socket=" + socket }

func (c Convert) args() []string {
	a := []string{"convert", "-p", "-n", "-t", "none", "-f", c.SourceFormat, "-O", "raw"}
	if c.TargetIsZero {
		a = append(a, "--target-is-zero")
	}
	return append(a, c.Source, c.Target)
}

// Run copies, and tells the progress in percent. Cancelling ctx ends it.
func (c Convert) Run(ctx context.Context, progress func(percent float64)) error {
	cmd := exec.CommandContext(ctx, Binary, c.args()...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return exitError(err)
	}
	scanProgress(out, progress)
	err = cmd.Wait()
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if err != nil {
		lines := strings.Split(strings.TrimSpace(stderr.String()), "\n")
		return fmt.Errorf("copy image: %s", strings.TrimPrefix(lines[len(lines)-1], "qemu-img: "))
	}
	return nil
}

// scanProgress reads "    (12.34/100%)\r" again and again.
func scanProgress(r io.Reader, progress func(float64)) {
	buf := make([]byte, 0, 256)
	chunk := make([]byte, 256)
	for {
		n, err := r.Read(chunk)
		buf = append(buf, chunk[:n]...)
		for {
			i := bytes.IndexByte(buf, '(')
			j := bytes.IndexByte(buf, '/')
			if i < 0 || j < i {
				break
			}
			if p, perr := strconv.ParseFloat(string(buf[i+1:j]), 64); perr == nil && progress != nil {
				progress(p)
			}
			buf = append(buf[:0], buf[j+1:]...)
		}
		if len(buf) > 128 {
			buf = append(buf[:0], buf[len(buf)-128:]...)
		}
		if err != nil {
			return
		}
	}
}
