// Package guestimage makes the drill's guest on the spot: a small bootable disk
// from Debian's kernel package, GRUB and cmd/roseau-probe. Nothing is mounted
// and no root is needed. The result is cached and made again when the kernel or
// the program changes.
package guestimage

import (
	"archive/tar"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strings"

	"roseau/internal/base/errs"
	"roseau/internal/drill/probe"
)

// layoutVersion is part of the cache key: raise it when the image's making
// changes.
const layoutVersion = "5"

const (
	sectorBytes    = 512
	partitionStart = 1 << 20
	partitionBytes = probe.ImageBytes - partitionStart
	grubDir        = "/usr/lib/grub/i386-pc"
)

// modules in the order of insertion: virtio needs virtio_ring first.
var modules = []string{
	"drivers/virtio/virtio_ring.ko", "drivers/virtio/virtio.ko",
	"drivers/virtio/virtio_pci_legacy_dev.ko", "drivers/virtio/virtio_pci_modern_dev.ko", "drivers/virtio/virtio_pci.ko",
	"drivers/block/virtio_blk.ko",
	"net/core/failover.ko", "drivers/net/net_failover.ko", "drivers/net/virtio_net.ko",
	"drivers/acpi/button.ko", "drivers/input/evdev.ko",
}

// kernelMeta is the package whose dependency is the present kernel image.
const kernelMeta = "linux-image-cloud-amd64"

// Builder makes images.
type Builder struct {
	CacheDir string // made if absent
	Probe    string // path of the program roseau-probe
}

// Build returns the path of the image without configuration: the same file for
// the same inputs. Callers copy it (Configure).
func (b Builder) Build(ctx context.Context) (string, error) {
	if err := os.MkdirAll(b.CacheDir, 0o755); err != nil {
		return "", err
	}
	kernel, err := b.kernelPackage(ctx)
	if err != nil {
		return "", err
	}
	prog, err := os.ReadFile(b.Probe)
	if err != nil {
		return "", errs.New(errs.NotFound, "read the guest's program: %w", err).WithHint("make build writes it beside the roseau binary")
	}
	sum := sha256.New()
	sum.Write(prog)
	fmt.Fprintf(sum, "|%s|%s", filepath.Base(kernel), layoutVersion)
	return b.cached("probe", sum, func(work string) error {
		if err := b.assemble(ctx, work, kernel, prog); err != nil {
			return fmt.Errorf("build the drill's guest image: %w", err)
		}
		return nil
	})
}

// cached returns the image whose inputs have the sum. If there is none yet, build makes
// disk.img in a directory that is removed afterwards.
func (b Builder) cached(kind string, sum hash.Hash, build func(work string) error) (string, error) {
	image := filepath.Join(b.CacheDir, kind+"-"+hex.EncodeToString(sum.Sum(nil))[:16]+".img")
	if _, err := os.Stat(image); err == nil {
		return image, nil
	}
	work, err := os.MkdirTemp(b.CacheDir, "build-")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(work)
	if err := build(work); err != nil {
		return "", err
	}
	return image, os.Rename(filepath.Join(work, "disk.img"), image)
}

// Configure writes a copy of image to dst with the guest's configuration in it.
func Configure(image, dst string, c probe.Config) error {
	conf, err := probe.EncodeConfig(c)
	if err != nil {
		return err
	}
	in, err := os.Open(image)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(dst, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	if err == nil {
		_, err = out.WriteAt(conf, probe.ConfigOffset)
	}
	return errors.Join(err, out.Close())
}

// kernelPackage returns the path of the kernel's .deb, downloaded with apt-get
// the first time.
func (b Builder) kernelPackage(ctx context.Context) (string, error) {
	if have, _ := filepath.Glob(filepath.Join(b.CacheDir, "linux-image-*.deb")); len(have) > 0 {
		return have[len(have)-1], nil
	}
	hint := "run `apt-get update`, or put Debian's " + kernelMeta + " image package (.deb) into " + b.CacheDir
	out, err := exec.CommandContext(ctx, "apt-cache", "depends", kernelMeta).Output()
	if err != nil {
		return "", errs.New(errs.Unavailable, "look up the guest's kernel package %s: %w", kernelMeta, err).WithHint("%s", hint)
	}
	name := ""
	for _, f := range strings.Fields(string(out)) {
		if strings.HasPrefix(f, "linux-image-") && f != kernelMeta {
			name = f
		}
	}
	cmd := exec.CommandContext(ctx, "apt-get", "download", "-q", name)
	cmd.Dir = b.CacheDir
	if msg, err := cmd.CombinedOutput(); err != nil {
		return "", errs.New(errs.Unavailable, "download the guest's kernel package %q: %w: %s", name, err, lastLine(msg)).WithHint("%s", hint)
	}
	have, _ := filepath.Glob(filepath.Join(b.CacheDir, "linux-image-*.deb"))
	if len(have) == 0 {
		return "", errs.New(errs.NotFound, "download the guest's kernel package %q: no file came", name).WithHint("%s", hint)
	}
	return have[len(have)-1], nil
}

// assemble writes work/disk.img.
func (b Builder) assemble(ctx context.Context, work, deb string, prog []byte) error {
	boot := filepath.Join(work, "tree", "boot")
	if err := os.MkdirAll(filepath.Join(boot, "grub"), 0o755); err != nil {
		return err
	}
	kernel, mods, err := extract(ctx, deb)
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(boot, "vmlinuz"), kernel, 0o644); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(boot, "initrd"), initramfs(prog, mods), 0o644); err != nil {
		return err
	}
	core := filepath.Join(work, "core.img")
	early := filepath.Join(work, "early.cfg")
	script := "set root=(hd0,msdos1)\nlinux /boot/vmlinuz console=ttyS0 quiet panic=-1 mitigations=off random.trust_cpu=on\ninitrd /boot/initrd\nboot\n"
	if err := os.WriteFile(early, []byte(script), 0o644); err != nil {
		return err
	}
	if err := run(ctx, "grub-mkimage", "-O", "i386-pc", "-d", grubDir, "-c", early, "-p", "(hd0,msdos1)/boot/grub", "-o", core,
		"biosdisk", "part_msdos", "ext2", "linux"); err != nil {
		return err
	}
	return writeDisk(ctx, filepath.Join(work, "disk.img"), filepath.Join(work, "tree"), core)
}

// writeDisk lays out boot loader, partition table and file system.
func writeDisk(ctx context.Context, img, tree, corePath string) error {
	f, err := os.Create(img)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := f.Truncate(probe.ImageBytes); err != nil {
		return err
	}
	bootCode, err := os.ReadFile(grubDir + "/boot.img")
	if err != nil {
		return errs.New(errs.NotFound, "read GRUB's boot sector: %w", err).WithHint("install the package grub-pc-bin")
	}
	core, err := os.ReadFile(corePath)
	if err != nil {
		return err
	}
	if len(core) > probe.ConfigOffset-sectorBytes {
		return errs.New(errs.Exhausted, "GRUB's core of %d bytes does not fit before the configuration", len(core))
	}
	mbr := make([]byte, sectorBytes)
	copy(mbr[:440], bootCode)
	partition(mbr, 0, partitionStart, partitionBytes)
	mbr[446] = 0x80 // active
	if _, err := f.WriteAt(mbr, 0); err != nil {
		return err
	}
	if _, err := f.WriteAt(core, sectorBytes); err != nil {
		return err
	}
	return run(ctx, "mke2fs", "-q", "-t", "ext2", "-d", tree, "-E", fmt.Sprintf("offset=%d", partitionStart), img, fmt.Sprintf("%dk", partitionBytes>>10))
}

// extract reads the kernel and the modules out of a .deb.
func extract(ctx context.Context, deb string) (kernel []byte, mods map[string][]byte, err error) {
	cmd := exec.CommandContext(ctx, "dpkg-deb", "--fsys-tarfile", deb)
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, nil, err
	}
	mods = map[string][]byte{}
	for tr := tar.NewReader(out); ; {
		h, err := tr.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return nil, nil, errors.Join(fmt.Errorf("read %s: %w", deb, err), cmd.Wait())
		}
		isKernel := strings.HasPrefix(h.Name, "./boot/vmlinuz-")
		isModule := false
		for _, m := range modules {
			isModule = isModule || strings.HasSuffix(h.Name, "/kernel/"+m)
		}
		if !isKernel && !isModule {
			continue
		}
		data, err := io.ReadAll(tr)
		if err != nil {
			return nil, nil, errors.Join(err, cmd.Wait())
		}
		if isKernel {
			kernel = data
		} else {
			mods[path.Base(h.Name)] = data
		}
	}
	if err := cmd.Wait(); err != nil {
		return nil, nil, fmt.Errorf("dpkg-deb --fsys-tarfile %s: %w", deb, err)
	}
	if kernel == nil || len(mods) != len(modules) {
		return nil, nil, errs.New(errs.Corrupt, "read %s: kernel or one of the %d modules is not in it (%d found)", deb, len(modules), len(mods))
	}
	return kernel, mods, nil
}

// initramfs returns a newc archive with the program as /init.
func initramfs(prog []byte, mods map[string][]byte) []byte {
	var c cpio
	for _, d := range []string{"dev", "proc", "sys", "modules"} {
		c.add(d, 0o040755, nil, 0, 0)
	}
	c.add("dev/console", 0o020600, nil, 5, 1)
	c.add("init", 0o100755, prog, 0, 0)
	order := ""
	for _, m := range modules {
		c.add("modules/"+path.Base(m), 0o100644, mods[path.Base(m)], 0, 0)
		order += path.Base(m) + "\n"
	}
	c.add("modules.order", 0o100644, []byte(order), 0, 0)
	c.add("TRAILER!!!", 0, nil, 0, 0)
	return c.b
}

// cpio writes the "newc" format (Documentation/driver-api/early-userspace/
// buffer-format.rst in the Linux sources).
type cpio struct {
	b   []byte
	ino int
}

func (c *cpio) add(name string, mode uint32, data []byte, major, minor int) {
	c.ino++
	c.b = fmt.Appendf(c.b, "070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x",
		c.ino, mode, 0, 0, 1, 0, len(data), 0, 0, major, minor, len(name)+1, 0)
	c.b = append(append(c.b, name...), 0)
	c.pad()
	c.b = append(c.b, data...)
	c.pad()
}

func (c *cpio) pad() {
	for len(c.b)%4 != 0 {
		c.b = append(c.b, 0)
	}
}

// run executes a tool that may stand in an administrator's path only.
func run(ctx context.Context, name string, args ...string) error {
	if _, err := exec.LookPath(name); err != nil {
		for _, dir := range []string{"/usr/sbin/", "/sbin/"} {
			if _, err := os.Stat(dir + name); err == nil {
				name = dir + name
				break
			}
		}
	}
	out, err := exec.CommandContext(ctx, name, args...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s: %w: %s", name, err, lastLine(out))
	}
	return nil
}

func lastLine(b []byte) string {
	lines := strings.Split(strings.TrimSpace(string(b)), "\n")
	return lines[len(lines)-1]
}
