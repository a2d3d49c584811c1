package nbd

import (
	"context"
	"encoding/json"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"roseau/internal/block/nbd/nbdtest"
)

// serve starts a server on a unix socket and returns its path.
func serve(t *testing.T, exports ...Export) string {
	t.Helper()
	sock := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", sock)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- NewServer(nil, exports...).Serve(ctx, l) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("serve: %v", err)
		}
	})
	return sock
}

func TestNbdinfo(t *testing.T) {
	m := newMem(8 << 20)
	copy(m.data[1<<20:], "x")
	m.have[256] = true
	sock := serve(t, Export{Name: "d", Description: "a disk", Backend: m})
	var info struct {
		Exports []struct {
			Name      string `json:"export-name"`
			Desc      string `json:"description"`
			Size      int64  `json:"export-size"`
			Min       int    `json:"block_size_minimum"`
			Preferred int    `json:"block_size_preferred"`
			Max       int    `json:"block_size_maximum"`
			Multi     bool   `json:"can_multi_conn"`
			FUA       bool   `json:"can_fua"`
			Flush     bool   `json:"can_flush"`
			Trim      bool   `json:"can_trim"`
			Zero      bool   `json:"can_zero"`
			Fast      bool   `json:"can_fast_zero"`
			DF        bool   `json:"can_df"`
			RO        bool   `json:"is_read_only"`
			Contexts  []string
		}
	}
	uri := "nbd+unix:///d?socket=" + sock
	out := nbdtest.Tool(t, "nbdinfo", "--json", uri)
	if err := json.Unmarshal([]byte(out), &info); err != nil || len(info.Exports) != 1 {
		t.Fatalf("%v: %s", err, out)
	}
	e := info.Exports[0]
	if e.Size != 8<<20 || e.Min != 4096 || e.Preferred != 65536 || e.Max != 32<<20 || !e.Multi || !e.FUA || !e.Flush ||
		!e.Trim || !e.Zero || !e.Fast || !e.DF || e.RO || len(e.Contexts) != 1 {
		t.Errorf("nbdinfo: %s", out)
	}
	if out := nbdtest.Tool(t, "nbdinfo", "--list", "nbd+unix://?socket="+sock); !strings.Contains(out, `export="d"`) {
		t.Errorf("list: %s", out)
	}
	out = nbdtest.Tool(t, "nbdinfo", "--map", uri)
	if f := strings.Fields(out); len(f) != 12 || f[1] != "1048576" || f[5] != "4096" || f[6] != "0" {
		t.Errorf("map: %s", out)
	}
}

func TestNbdcopyAndQemuImg(t *testing.T) {
	const size = 24 << 20
	a, b := newMem(size), newMem(size)
	sa, sb := serve(t, Export{Name: "a", Backend: a}), serve(t, Export{Name: "b", Backend: b})
	src := filepath.Join(t.TempDir(), "src")
	data := make([]byte, size)
	for i := range data {
		if i>>20%3 != 1 {
			data[i] = byte(i * 7 >> 5)
		}
	}
	if err := os.WriteFile(src, data, 0o600); err != nil {
		t.Fatal(err)
	}
	ua, ub := "nbd+unix:///a?socket="+sa, "nbd+unix:///b?socket="+sb
	nbdtest.Tool(t, "nbdcopy", "--flush", src, ua)
	if a.text() != string(data) || a.flushes.Load() == 0 {
		t.Fatal("nbdcopy into the export differs, or did not flush")
	}
	nbdtest.Tool(t, "nbdcopy", ua, ub)
	if b.text() != string(data) {
		t.Fatal("nbdcopy between exports differs")
	}
	nbdtest.Tool(t, "qemu-img", "compare", "-f", "raw", "-F", "raw", "nbd+unix:///a?socket="+sa, src)
	out := filepath.Join(t.TempDir(), "out.qcow2")
	nbdtest.Tool(t, "qemu-img", "convert", "-f", "raw", "-O", "qcow2", ua, out)
	nbdtest.Tool(t, "qemu-img", "convert", "-n", "-f", "qcow2", "-O", "raw", out, ub)
	nbdtest.Tool(t, "qemu-img", "compare", "-f", "raw", "-F", "qcow2", ub, out)
}

func TestQemuIO(t *testing.T) {
	m := newMem(4 << 20)
	sock := serve(t, Export{Backend: m})
	out := nbdtest.Tool(t, "qemu-io", "-f", "raw", "nbd+unix://?socket="+sock,
		"-c", "write -P 0x5a 0 64k", "-c", "write -f -P 0x11 64k 4k", "-c", "read -P 0x5a 0 64k",
		"-c", "write -z 4k 8k", "-c", "read -P 0 4k 8k", "-c", "discard 16k 16k", "-c", "read -P 0 16k 16k",
		"-c", "write -P 7 100 512", "-c", "read -P 7 100 512", "-c", "flush", "-c", "read -P 0x11 64k 4k", "-c", "map")
	if strings.Contains(out, "failed") || strings.Contains(out, "rror") {
		t.Fatal(out)
	}
	r := newMem(1 << 20)
	r.ro = true
	ro := serve(t, Export{Backend: r})
	nbdtest.Tool(t, "qemu-io", "-r", "-f", "raw", "nbd+unix://?socket="+ro, "-c", "read 0 4k")
}

func TestFioVerify(t *testing.T) {
	m := newMem(16 << 20)
	sock := serve(t, Export{Backend: m})
	nbdtest.Tool(t, "fio", "--name=v", "--ioengine=nbd", "--uri=nbd+unix://?socket="+sock, "--rw=randwrite", "--bsrange=4k-128k",
		"--blockalign=4k", "--iodepth=16", "--size=16M", "--verify=crc32c", "--verify_fatal=1", "--verify_backlog=64", "--fsync=32", "--thread=1")
	if m.flushes.Load() == 0 {
		t.Error("fio flushed nothing")
	}
}
