package guestimage

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"roseau/internal/base/errs"
	"roseau/internal/drill/probe"
)

// databaseVersion is part of the cache key, as layoutVersion is.
const databaseVersion = "2"

// databasePackages are wanted in the guest, with what they depend on.
var databasePackages = []string{"postgresql-15", "postgresql-client-15", "e2fsprogs", "fio", "dash", "tzdata"}

// databaseWithout are dependencies that the guest can do without: they set
// packages up on a real machine, or compile queries.
var databaseWithout = []string{
	"libllvm14", "libz3-4", "postgresql-common", "postgresql-client-common", "ssl-cert", "locales", "locales-all", "libc-l10n",
	"debconf", "cdebconf", "dpkg", "tar", "adduser", "passwd", "ucf", "install-info", "init-system-helpers", "sysvinit-utils", "lsb-base",
	"netbase", "openssl", "usrmerge", "usr-is-merged", "sensible-utils", "libc-bin", "debianutils", "readline-common", "logsave", "libpam-modules", "libpam-modules-bin",
	"python3", "mailcap", "media-types", "mime-support",
}

// BuildDatabase returns the path of the second disk of a guest with a database:
// Debian's PostgreSQL, e2fsprogs and fio, unpacked, never installed.
func (b Builder) BuildDatabase(ctx context.Context) (string, error) {
	if err := os.MkdirAll(b.CacheDir, 0o755); err != nil {
		return "", err
	}
	debs, err := b.databaseDebs(ctx)
	if err != nil {
		return "", err
	}
	sum := sha256.New()
	fmt.Fprint(sum, databaseVersion)
	for _, d := range debs {
		fmt.Fprintf(sum, "|%s", filepath.Base(d))
	}
	return b.cached("database", sum, func(work string) error {
		if err := assembleDatabase(ctx, work, filepath.Join(work, "disk.img"), debs); err != nil {
			return fmt.Errorf("build the drill's database disk: %w", err)
		}
		return nil
	})
}

// databaseDebs downloads the packages the first time.
func (b Builder) databaseDebs(ctx context.Context) ([]string, error) {
	dir := filepath.Join(b.CacheDir, "database-"+databaseVersion)
	if have, _ := filepath.Glob(filepath.Join(dir, "*.deb")); len(have) > 0 {
		return have, nil
	}
	const hint = "run `apt-get update`"
	args := append([]string{"depends", "--recurse", "--no-recommends", "--no-suggests", "--no-conflicts", "--no-breaks", "--no-replaces", "--no-enhances"}, databasePackages...)
	out, err := exec.CommandContext(ctx, "apt-cache", args...).Output()
	if err != nil {
		return nil, errs.New(errs.Unavailable, "look up the packages of the database guest: %w", err).WithHint(hint)
	}
	names := wantedPackages(string(out))
	work, err := os.MkdirTemp(b.CacheDir, "download-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(work)
	cmd := exec.CommandContext(ctx, "apt-get", append([]string{"download", "-q"}, names...)...)
	cmd.Dir = work
	if msg, err := cmd.CombinedOutput(); err != nil {
		return nil, errs.New(errs.Unavailable, "download the packages of the database guest: %w: %s", err, lastLine(msg)).WithHint(hint)
	}
	if err := os.Rename(work, dir); err != nil {
		return nil, err
	}
	have, err := filepath.Glob(filepath.Join(dir, "*.deb"))
	return have, err
}

// wantedPackages reads the real packages out of `apt-cache depends --recurse`,
// without those that the guest does not need, and what only they bring in.
func wantedPackages(depends string) []string {
	needs := map[string][]string{}
	at := ""
	for line := range strings.Lines(depends) {
		name := strings.TrimRight(line, "\n")
		switch {
		case name != "" && name[0] != ' ' && name[0] != '<' && name[0] != '|':
			at = name
			needs[at] = nil
		case strings.Contains(line, "epends: "): // Depends and PreDepends
			_, dep, _ := strings.Cut(strings.TrimSpace(name), "epends: ")
			if !strings.HasPrefix(dep, "<") {
				needs[at] = append(needs[at], dep)
			}
		}
	}
	var out []string
	todo := slices.Clone(databasePackages)
	for len(todo) > 0 {
		p := todo[0]
		todo = todo[1:]
		if _, real := needs[p]; !real || slices.Contains(out, p) || slices.Contains(databaseWithout, p) || strings.Contains(p, "perl") {
			continue
		}
		out = append(out, p)
		todo = append(todo, needs[p]...)
	}
	slices.Sort(out)
	return out
}

func assembleDatabase(ctx context.Context, work, img string, debs []string) error {
	tree := filepath.Join(work, "tree")
	if err := os.MkdirAll(tree, 0o755); err != nil {
		return err
	}
	for _, d := range debs {
		if err := run(ctx, "dpkg-deb", "-x", d, tree); err != nil {
			return err
		}
	}
	if err := trimTree(tree); err != nil {
		return err
	}
	f, err := os.Create(img)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := f.Truncate(probe.DBDataOffset); err != nil {
		return err
	}
	mbr := make([]byte, sectorBytes)
	partition(mbr, 0, probe.DBRootOffset, probe.DBRootBytes)
	partition(mbr, 1, probe.DBDataOffset, probe.DBDataBytes)
	partition(mbr, 2, probe.FioOffset, probe.FioBytes)
	if _, err := f.WriteAt(mbr, 0); err != nil {
		return err
	}
	return run(ctx, "mke2fs", "-q", "-t", "ext4", "-O", "^has_journal", "-E", fmt.Sprintf("root_owner=0:0,offset=%d", probe.DBRootOffset),
		"-d", tree, img, fmt.Sprintf("%dk", probe.DBRootBytes>>10))
}

// trimTree makes an unpacked tree one that the database can be run in.
func trimTree(tree string) error {
	for _, dir := range []string{"usr/share/doc", "usr/share/man", "usr/share/locale", "usr/share/postgresql/15/man", "usr/lib/postgresql/15/lib/bitcode", "usr/share/lintian", "usr/share/info"} {
		if err := os.RemoveAll(filepath.Join(tree, dir)); err != nil {
			return err
		}
	}
	for _, dir := range []string{"data", "dev", "proc", "sys", "tmp", "run", "etc", "bin"} {
		if err := os.MkdirAll(filepath.Join(tree, dir), 0o755); err != nil {
			return err
		}
	}
	files := map[string]string{
		"etc/passwd":        "root:x:0:0::/root:/bin/sh\npostgres:x:100:100::/data:/bin/sh\n",
		"etc/group":         "root:x:0:\npostgres:x:100:\n",
		"etc/nsswitch.conf": "passwd: files\ngroup: files\n",
	}
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(tree, name), []byte(text), 0o644); err != nil {
			return err
		}
	}
	sh := filepath.Join(tree, "bin/sh")
	if _, err := os.Lstat(sh); err == nil {
		return nil
	}
	return os.Symlink("dash", sh)
}

// partition writes entry n of a partition table: a Linux partition.
func partition(mbr []byte, n int, start, length int64) {
	e := mbr[446+16*n:][:16]
	e[4] = 0x83
	copy(e[1:4], []byte{0xfe, 0xff, 0xff})
	copy(e[5:8], []byte{0xfe, 0xff, 0xff})
	binary.LittleEndian.PutUint32(e[8:], uint32(start/sectorBytes))
	binary.LittleEndian.PutUint32(e[12:], uint32(length/sectorBytes))
	mbr[510], mbr[511] = 0x55, 0xaa
}
