package main

import (
	"encoding/binary"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// From Linux's input-event-codes.h.
const (
	evKey    = 1
	keyPower = 116
)

// obeyButton powers the guest off when its power button is pressed, unless it was
// told to hold on. A guest without a button lets it be.
func (g *guest) obeyButton() {
	device, err := powerButton()
	if err != nil {
		fmt.Println("roseau-probe: power button:", err)
		return
	}
	f, err := os.Open(device)
	if err != nil {
		fmt.Println("roseau-probe: power button:", err)
		return
	}
	// struct input_event: a struct timeval, type and code of 16 bits, a value of 32.
	const head = int(unsafe.Sizeof(unix.Timeval{}))
	for b := make([]byte, head+8); ; {
		if _, err := f.Read(b); err != nil {
			fmt.Println("roseau-probe: power button:", err)
			return
		}
		kind, code := binary.LittleEndian.Uint16(b[head:]), binary.LittleEndian.Uint16(b[head+2:])
		if kind == evKey && code == keyPower && binary.LittleEndian.Uint32(b[head+4:]) == 1 {
			g.pressed()
		}
	}
}

// powerButton finds the device of the ACPI power button, which appears when its
// driver has been loaded.
func powerButton() (string, error) {
	names, err := filepath.Glob("/sys/class/input/event*/device/name")
	if err != nil {
		return "", err
	}
	for _, n := range names {
		if b, err := os.ReadFile(n); err == nil && strings.TrimSpace(string(b)) == "Power Button" {
			return "/dev/input/" + filepath.Base(filepath.Dir(filepath.Dir(n))), nil
		}
	}
	return "", fmt.Errorf("none among %d input devices", len(names))
}

func (g *guest) pressed() {
	g.mu.Lock()
	g.st.Pressed++
	hold := g.hold
	g.mu.Unlock()
	if !hold {
		powerOff()
	}
}

// handleButton says what the button does from now on: with ?hold=1 nothing but to
// be counted, without it powers the guest off, at once if it was pressed before.
func (g *guest) handleButton(_ http.ResponseWriter, r *http.Request) {
	g.mu.Lock()
	g.hold = r.FormValue("hold") != ""
	off := !g.hold && g.st.Pressed > 0
	g.mu.Unlock()
	if off {
		go powerOff() // the answer goes out first, if it can
	}
}

// powerOff ends the guest.
func powerOff() {
	unix.Sync()
	if err := unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF); err != nil {
		fmt.Println("roseau-probe: power off:", err)
	}
}
