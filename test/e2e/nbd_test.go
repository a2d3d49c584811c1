package e2e

import (
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// NBD clients that nobody here wrote use a volume of three copies, on the socket
// of `roseau volume serve`.
func TestForeignNBDClients(t *testing.T) {
	must(t, time.Minute, "volume", "create", "nbd", "--size", "256MiB")
	defer must(t, time.Minute, "volume", "delete", "nbd", "--confirm", "nbd")
	socket := strings.TrimSpace(must(t, time.Minute, "volume", "serve", "nbd", "--node", "n1"))
	defer must(t, time.Minute, "volume", "unserve", "nbd")
	uri := nbdURI(t, "n1", socket)
	dir := t.TempDir()
	run := func(name string, args ...string) string {
		t.Helper()
		cmd := exec.Command(name, args...)
		cmd.Dir = dir // fio leaves its state of verification where it runs
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
		}
		return string(out)
	}
	if out := run("nbdinfo", uri); !strings.Contains(out, "export-size: 268435456") || !strings.Contains(out, "can_flush: true") || !strings.Contains(out, "can_multi_conn: true") {
		t.Errorf("nbdinfo:\n%s", out)
	}
	run("fio", "--name=verify", "--ioengine=nbd", "--uri="+uri, "--rw=randwrite", "--bs=4k-64k", "--size=64m", "--iodepth=16",
		"--verify=crc32c", "--do_verify=1", "--fsync=64", "--norandommap=0", "--minimal")
	img := filepath.Join(dir, "data.img")
	run("dd", "if=/dev/urandom", "of="+img, "bs=1M", "count=64", "status=none")
	run("truncate", "-s", "256M", img)
	run("nbdcopy", img, uri)
	back := filepath.Join(dir, "back.img")
	run("nbdcopy", uri, back)
	run("cmp", img, back)
	if out := run("qemu-img", "compare", "-f", "raw", "-F", "raw", img, uri); !strings.Contains(out, "identical") {
		t.Errorf("qemu-img compare: %s", out)
	}
}
