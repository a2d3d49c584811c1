#!/usr/bin/env bash
# Installs the Debian packages that building, the lab and the tests need. Idempotent, and silent when nothing is missing.
set -euo pipefail

# command that must exist : package that has it : what for
needs=(
  "qemu-system-x86_64:qemu-system-x86:run virtual machines"
  "qemu-img:qemu-utils:import images, and compare in tests"
  "nbdinfo:libnbd-bin:an NBD client that is not ours, for tests"
  "fio:fio:an I/O load that is not ours, for tests and benchmarks"
  "ip:iproute2:look at the lab's networks"
  "nft:nftables:look at the port guard"
  "ipmitool:ipmitool:talk to management controllers by IPMI"
  "ipmi_sim:openipmi:a management controller to test that with"
  "mke2fs:e2fsprogs:make the probe guest's disk"
  "sfdisk:fdisk:make the probe guest's disk"
  "grub-mkimage:grub-common:make the probe guest's disk bootable"
)
files=(
  "/usr/lib/grub/i386-pc/boot.img:grub-pc-bin:make the probe guest's disk bootable"
)
missing=()
for n in "${needs[@]}"; do
  IFS=: read -r cmd pkg why <<<"$n"
  PATH="$PATH:/sbin:/usr/sbin" command -v "$cmd" >/dev/null || { missing+=("$pkg"); echo "setup: $cmd is missing: package $pkg ($why)"; }
done
for n in "${files[@]}"; do
  IFS=: read -r file pkg why <<<"$n"
  [ -e "$file" ] || { missing+=("$pkg"); echo "setup: $file is missing: package $pkg ($why)"; }
done
command -v go >/dev/null || { echo "setup: Go 1.26 is needed: see https://go.dev/doc/install" >&2; exit 1; }
sudo=()
if [ "$(id -u)" != 0 ]; then
  sudo=(sudo)
fi
if [ ${#missing[@]} -gt 0 ]; then
  echo "setup: installing ${missing[*]}${sudo:+ (sudo: packages are installed for the whole machine)}"
  if [ ! -e /var/lib/apt/periodic/update-success-stamp ] || [ -z "$(find /var/lib/apt/lists -name '*Packages*' -mmin -720 2>/dev/null | head -n 1)" ]; then
    "${sudo[@]}" apt-get update -qq
  fi
  "${sudo[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
fi
exit 0
