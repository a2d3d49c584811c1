package main

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"roseau/internal/drill/probe"
)

const diskPath = "/dev/vda"

// bringUp mounts, loads the modules listed in /modules.order, opens the disk,
// reads the configuration from it and sets the network up.
func bringUp() (*guest, error) {
	for _, m := range []struct{ kind, dir string }{{"proc", "/proc"}, {"sysfs", "/sys"}, {"devtmpfs", "/dev"}} {
		if err := os.MkdirAll(m.dir, 0o755); err != nil {
			return nil, err
		}
		if err := unix.Mount(m.kind, m.dir, m.kind, 0, ""); err != nil && !errors.Is(err, unix.EBUSY) {
			return nil, fmt.Errorf("mount %s: %w", m.dir, err)
		}
	}
	if err := loadModules(); err != nil {
		return nil, err
	}
	if err := waitFor(diskPath); err != nil {
		return nil, err
	}
	disk, err := os.OpenFile(diskPath, os.O_RDWR|unix.O_DIRECT, 0)
	if err != nil {
		return nil, err
	}
	buf := alignedBuffer(probe.ConfigBytes)
	if _, err := disk.ReadAt(buf, probe.ConfigOffset); err != nil {
		return nil, fmt.Errorf("read configuration: %w", err)
	}
	config, err := probe.DecodeConfig(buf)
	if err != nil {
		return nil, err
	}
	if err := configureNetwork(config); err != nil {
		return nil, err
	}
	boot := make([]byte, 8)
	rand.Read(boot)
	return newGuest(config, disk, hex.EncodeToString(boot)), nil
}

// loadModules inserts the modules in the listed order; one that is there
// already, or whose device is absent, is no error.
func loadModules() error {
	order, err := os.ReadFile("/modules.order")
	if err != nil {
		return err
	}
	for _, name := range strings.Fields(string(order)) {
		f, err := os.Open(filepath.Join("/modules", name))
		if err != nil {
			return err
		}
		err = unix.FinitModule(int(f.Fd()), "", 0)
		f.Close()
		if err != nil && !errors.Is(err, unix.EEXIST) && !errors.Is(err, unix.ENODEV) {
			return fmt.Errorf("load module %s: %w", name, err)
		}
	}
	return nil
}

func waitFor(path string) error {
	for range 1000 {
		if _, err := os.Stat(path); err == nil {
			return nil
		}
		time.Sleep(10 * time.Millisecond)
	}
	return fmt.Errorf("%s did not appear within 10 s", path)
}

// configureNetwork gives the first Ethernet interface its address by ioctl;
// a guest without an interface is fine (a drill of storage alone).
func configureNetwork(c probe.Config) error {
	for range 300 {
		if _, err := net.InterfaceByName("eth0"); err == nil {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := linkUp(fd, "lo"); err != nil {
		return err
	}
	if _, err := net.InterfaceByName("eth0"); err != nil {
		fmt.Println("roseau-probe: no eth0")
		return nil
	}
	mask := net.CIDRMask(c.Address.Bits(), 32)
	if err := setAddress(fd, "eth0", unix.SIOCSIFADDR, c.Address.Addr().AsSlice()); err != nil {
		return fmt.Errorf("set address %s: %w", c.Address, err)
	}
	if err := setAddress(fd, "eth0", unix.SIOCSIFNETMASK, mask); err != nil {
		return fmt.Errorf("set netmask of %s: %w", c.Address, err)
	}
	return linkUp(fd, "eth0")
}

func setAddress(fd int, link string, op uint, addr []byte) error {
	req, err := unix.NewIfreq(link)
	if err != nil {
		return err
	}
	if err := req.SetInet4Addr(addr); err != nil {
		return err
	}
	return unix.IoctlIfreq(fd, op, req)
}

func linkUp(fd int, link string) error {
	req, err := unix.NewIfreq(link)
	if err != nil {
		return err
	}
	req.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
	if err := unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, req); err != nil {
		return fmt.Errorf("bring %s up: %w", link, err)
	}
	return nil
}

// alignedBuffer returns n bytes whose address is a multiple of 4096, as
// O_DIRECT wants.
func alignedBuffer(n int) []byte {
	b := make([]byte, n+4096)
	at := int(-uintptr(unsafe.Pointer(&b[0])) & 4095)
	return b[at:][:n:n]
}
