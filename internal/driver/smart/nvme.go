package smart

import (
	"fmt"
	"os"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// adminCommand is struct nvme_passthru_cmd of linux/nvme_ioctl.h.
type adminCommand struct {
	opcode, flags          uint8
	rsvd1                  uint16
	nsid, cdw2, cdw3       uint32
	metadata, addr         uint64
	metadataLen, dataLen   uint32
	cdw10, cdw11, cdw12    uint32
	cdw13, cdw14, cdw15    uint32
	timeoutMS, resultDword uint32
}

const (
	ioctlAdmin  = 0xc0484e41 // NVME_IOCTL_ADMIN_CMD
	getLogPage  = 0x02
	healthPage  = 0x02
	allOfDevice = 0xffffffff // namespace: the controller's log
)

// nvmeLog asks an NVMe disk for its health log.
func nvmeLog(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	buf := make([]byte, nvmeLogBytes)
	c := adminCommand{opcode: getLogPage, nsid: allOfDevice, addr: uint64(uintptr(unsafe.Pointer(&buf[0]))), dataLen: nvmeLogBytes,
		cdw10: healthPage | (nvmeLogBytes/4-1)<<16, timeoutMS: uint32(readTimeout.Milliseconds())}
	var pin runtime.Pinner
	pin.Pin(&buf[0])
	defer pin.Unpin()
	status, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), ioctlAdmin, uintptr(unsafe.Pointer(&c)))
	if errno != 0 {
		return nil, fmt.Errorf("read health log of %s: %w", path, errno)
	}
	if status != 0 {
		return nil, fmt.Errorf("read health log of %s: NVMe status %#x", path, status)
	}
	return buf, nil
}
