package guestimage

import (
	"bytes"
	"os/exec"
	"strings"
	"testing"
)

// The archive is read back by a cpio that nobody here wrote.
func TestInitramfsIsCpio(t *testing.T) {
	if _, err := exec.LookPath("cpio"); err != nil {
		t.Skip("no cpio on this machine")
	}
	mods := map[string][]byte{}
	b := initramfs([]byte("#!program"), mods)
	cmd := exec.Command("cpio", "-it", "--quiet")
	cmd.Stdin = bytes.NewReader(b)
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"init", "dev/console", "modules/virtio_blk.ko", "modules.order"} {
		if !strings.Contains("\n"+string(out), "\n"+want+"\n") {
			t.Errorf("no %s in\n%s", want, out)
		}
	}
}

func TestWantedPackages(t *testing.T) {
	const depends = `postgresql-15
  Depends: libssl3
 |Depends: locales
  Depends: <locale>
  Depends: postgresql-common
  PreDepends: dpkg
postgresql-client-15
e2fsprogs
  PreDepends: libext2fs2
dash
tzdata
libssl3
  Depends: libc6
libc6
libext2fs2
postgresql-common
  Depends: perl
perl
dpkg
locales
`
	got := strings.Join(wantedPackages(depends), " ")
	if want := "dash e2fsprogs libc6 libext2fs2 libssl3 postgresql-15 postgresql-client-15 tzdata"; got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}
