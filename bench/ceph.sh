#!/bin/sh
# A Ceph cluster of one monitor and three OSDs on loopback addresses, from the
# installed packages, to measure against. Everything stands in DIR.
#
#   bench/ceph.sh up DIR [MIB]    start, and make an RBD image of MIB (default 512)
#   bench/ceph.sh down DIR        stop everything and remove DIR
#
# up writes DIR/ceph.conf (for fio --ioengine=rbd, pool bench, image img) and
# DIR/pids. Debian: apt install ceph-mon ceph-mgr ceph-osd ceph-common
set -eu
cmd=${1:-}
dir=${2:-}
[ -n "$dir" ] || { echo "usage: bench/ceph.sh up|down DIR [MIB]" >&2; exit 2; }
conf=$dir/ceph.conf

# waitfor SECONDS WHAT COMMAND...: repeats the command until it succeeds.
waitfor() {
	left=$(($1 * 5)) what=$2
	shift 2
	until "$@" >/dev/null 2>&1; do
		left=$((left - 1))
		[ $left -gt 0 ] || { echo "bench/ceph.sh: waited in vain until $what; logs are in $dir" >&2; return 1; }
		sleep 0.2
	done
}

# stop ends the daemons named; OSDs go first, for without a monitor they do not end.
stop() {
	for d in "$@"; do
		[ -f "$dir/$d.pid" ] || continue
		pid=$(cat "$dir/$d.pid")
		kill "$pid" 2>/dev/null || continue
		waitfor 15 "$d had ended" sh -c "! kill -0 $pid" || kill -9 "$pid" 2>/dev/null || :
	done
}

down() {
	[ -f "$conf" ] || { echo "bench/ceph.sh: there is no cluster in $dir" >&2; exit 1; }
	stop osd.0 osd.1 osd.2
	stop mgr.x
	stop mon.a
	rm -rf "$dir"
}

# active: every placement group serves with all its copies. HEALTH_OK comes
# before that.
active() {
	ceph -c "$conf" pg stat | grep -Eq '^([0-9]{2,}) pgs: \1 active\+clean;'
}

up() {
	mib=${3:-512}
	for tool in ceph-mon ceph-mgr ceph-osd ceph rbd; do
		command -v $tool >/dev/null || { echo "bench/ceph.sh: $tool is not installed: apt install ceph-mon ceph-mgr ceph-osd ceph-common" >&2; exit 1; }
	done
	[ ! -e "$dir" ] || { echo "bench/ceph.sh: $dir exists" >&2; exit 1; }
	mkdir -p "$dir/mon" "$dir/mgr" "$dir/run" "$dir/osd0" "$dir/osd1" "$dir/osd2"
	trap 'down' EXIT
	trap 'exit 1' INT TERM HUP
	fsid=$(cat /proc/sys/kernel/random/uuid)
	cat >"$conf" <<-CONF
		[global]
		fsid = $fsid
		mon host = [v2:127.0.0.1:13300,v1:127.0.0.1:16789]
		public network = 127.0.0.0/8
		cluster network = 127.0.0.0/8
		auth cluster required = cephx
		auth service required = cephx
		auth client required = cephx
		osd crush chooseleaf type = 0
		osd pool default size = 3
		osd pool default min size = 2
		osd pool default pg autoscale mode = off
		mon allow pool size one = true
		mon osd min down reporters = 1
		run dir = $dir/run
		admin socket = $dir/run/\$name.asok
		log file = $dir/\$name.log
		pid file = $dir/\$name.pid
		[client]
		keyring = $dir/keyring
		rbd cache = false
		log file = /dev/null
		admin socket =
		pid file =
		[mon]
		keyring = $dir/keyring
		mon data = $dir/mon
		[mgr.x]
		keyring = $dir/mgr/keyring
		mgr data = $dir/mgr
		[osd]
		osd data = $dir/osd\$id
		keyring = $dir/osd\$id/keyring
		bluestore block path = $dir/osd\$id.block
		bluestore block size = 10737418240
		bluestore block create = true
		bdev enable discard = false
		osd memory target = 1073741824
	CONF
	export CEPH_CONF="$conf"
	ceph-authtool --create-keyring "$dir/keyring" --gen-key -n mon. --cap mon 'allow *' >/dev/null
	ceph-authtool "$dir/keyring" --gen-key -n client.admin --cap mon 'allow *' --cap osd 'allow *' --cap mgr 'allow *' --cap mds 'allow *' >/dev/null
	monmaptool --create --fsid "$fsid" --addv a '[v2:127.0.0.1:13300,v1:127.0.0.1:16789]' "$dir/monmap" >/dev/null
	ceph-mon -c "$conf" --mkfs -i a --monmap "$dir/monmap" --keyring "$dir/keyring"
	ceph-mon -c "$conf" -i a
	waitfor 30 "the monitor answered" ceph -c "$conf" --connect-timeout 2 mon stat
	ceph -c "$conf" auth get-or-create mgr.x mon 'allow profile mgr' osd 'allow *' mds 'allow *' -o "$dir/mgr/keyring"
	ceph-mgr -c "$conf" -i x
	for i in 0 1 2; do
		uuid=$(cat /proc/sys/kernel/random/uuid)
		key=$(ceph-authtool --gen-print-key)
		echo "{\"cephx_secret\":\"$key\"}" | ceph -c "$conf" osd new "$uuid" $i -i - >/dev/null
		truncate -s 10G "$dir/osd$i.block"
		ceph-authtool --create-keyring "$dir/osd$i/keyring" -n osd.$i --add-key "$key" >/dev/null
		(ceph-osd -c "$conf" -i $i --mkfs --osd-uuid "$uuid" >"$dir/osd$i.mkfs" 2>&1 && ceph-osd -c "$conf" -i $i) &
	done
	wait
	waitfor 60 "three OSDs were up" sh -c "ceph -c $conf osd stat | grep -q '3 up'"
	ceph -c "$conf" osd pool create bench 32 32 replicated >/dev/null 2>&1
	ceph -c "$conf" osd pool set bench size 3 >/dev/null 2>&1
	ceph -c "$conf" osd pool set bench min_size 2 >/dev/null 2>&1
	waitfor 90 "all placement groups were active" active
	rbd -c "$conf" pool init bench
	rbd -c "$conf" create --size "${mib}M" --image-feature layering bench/img
	cat "$dir/osd.0.pid" "$dir/osd.1.pid" "$dir/osd.2.pid" "$dir/mon.a.pid" "$dir/mgr.x.pid" | tr -s '\n' ' ' >"$dir/pids"
	trap - EXIT INT TERM HUP
}

case $cmd in
up) up "$@" ;;
down) down ;;
*) echo "usage: bench/ceph.sh up|down DIR [MIB]" >&2; exit 2 ;;
esac
