#!/usr/bin/env bash
# Pacemaker and Corosync in three network namespaces of one machine, with a Dummy
# resource, and Roseau on a lab of three nodes, with a guest on a mirrored volume: how
# long from the death of the node that runs it until it runs on another. No fencing
# (none is needed for a Dummy; with a real disk it would be, and would take longer).
#
# Both are measured at the same two points, by one clock, from the moment before the
# kill:
#   started  what was started notes it itself: the state file that Dummy's start writes
#            (its time of change), QEMU's event RESUME (start_steps in the VM's status)
#   shown    the cluster's own tool, asked again and again on another machine, says that
#            it runs there: crm_resource --locate, `roseau vm show`
#
#   bench/pacemaker.sh [RUNS [FILE]]   default 10; root; prints two tables, to FILE too
#
# Needs bin/roseau (`make build`) for the second; the lab is called bench-failover. With
# ONLY=pacemaker or ONLY=roseau one half alone.
#
# Debian: apt install --no-install-recommends pacemaker corosync pacemaker-cli-utils resource-agents
set -euo pipefail
runs=${1:-10}
[ -z "${2:-}" ] || exec > >(tee "$2")
only=${ONLY:-}
for c in corosync pacemakerd crm_mon cibadmin unshare ip; do
	command -v "$c" >/dev/null || PATH=$PATH:/usr/sbin:/sbin command -v "$c" >/dev/null || { echo "bench/pacemaker.sh: $c is missing: see the head of this file" >&2; exit 1; }
done
[ "$(id -u)" = 0 ] || { echo "bench/pacemaker.sh: needs root for namespaces" >&2; exit 1; }
dir=$(mktemp -d)
pre=pcm$$
pids=()
cleanup() {
	[ -z "${lab:-}" ] || "$roseau" lab down --name "$lab" >/dev/null 2>&1 || true
	for p in "${pids[@]}"; do kill -9 "$p" 2>/dev/null || true; done
	for i in 1 2 3; do ip link del "$pre$i" 2>/dev/null || true; done
	ip link del "${pre}br" 2>/dev/null || true
	rm -rf "$dir"
}
trap cleanup EXIT

ip link add "${pre}br" type bridge
ip link set "${pre}br" up

# node I: PID 1 of a namespace of its own, with its own /run, /dev/shm, /etc/corosync and /var/lib.
node() {
	local i=$1 d=$dir/n$1
	mkdir -p "$d/corosync" "$d/lib"
	cat >"$d/corosync/corosync.conf" <<-C
		totem {
		  version: 2
		  cluster_name: bench
		  transport: udpu
		  crypto_cipher: none
		  crypto_hash: none
		}
		nodelist {
		$(for j in 1 2 3; do printf 'node {\nring0_addr: 10.77.7.%d\nname: n%d\nnodeid: %d\n}\n' "$j" "$j" "$j"; done)
		}
		quorum {
		  provider: corosync_votequorum
		}
		logging {
		  to_stderr: no
		  to_syslog: no
		  to_logfile: yes
		  logfile: $d/corosync.log
		}
	C
	cat >"$d/start" <<-C
		set -e
		hostname n$i
		mount -t tmpfs tmpfs /run
		mount -t tmpfs tmpfs /dev/shm
		mkdir -p /run/crm /run/resource-agents
		chown hacluster:haclient /run/crm
		mkdir -p $d/lib/corosync $d/lib/pacemaker/cib $d/lib/pacemaker/pengine $d/lib/pacemaker/blackbox $d/lib/pacemaker/cores
		chown -R hacluster:haclient $d/lib/pacemaker
		mount --bind $d/lib/corosync /var/lib/corosync
		mount --bind $d/lib/pacemaker /var/lib/pacemaker
		mount --bind $d/corosync /etc/corosync
		ip link set lo up
		until ip addr add 10.77.7.$i/24 dev eth0 2>/dev/null; do sleep 0.05; done
		ip link set eth0 up
		corosync -f &
		until corosync-cfgtool -s >/dev/null 2>&1; do sleep 0.1; done
		export PCMK_logfile=$d/pacemaker.log PCMK_ipc_type=shared-mem
		exec pacemakerd -f
	C
	unshare --mount --net --uts --ipc --pid --fork --kill-child --mount-proc bash "$d/start" >"$d/out" 2>&1 &
	pids+=($!)
	sleep 0.2
	echo $! >"$d/pid"
	ip link add "$pre$i" type veth peer name eth0 netns "$!"
	ip link set "$pre$i" master "${pre}br" up
}

# init I: the process that is PID 1 inside; its death is the power cut.
init() { pgrep -P "$(cat "$dir/n$1/pid")" | head -n 1; }
in_node() { local i=$1; shift; nsenter -t "$(init "$i")" -m -n -u -i -p -- "$@"; }

await() { # SECONDS WHAT COMMAND...
	local end=$(($(date +%s) + $1)) what=$2
	shift 2
	until "$@" >/dev/null 2>&1; do
		[ "$(date +%s)" -lt "$end" ] || { echo "bench/pacemaker.sh: waited in vain until $what" >&2; tail -n 5 "$dir"/n*/out "$dir"/n*/*.log >&2; exit 1; }
		sleep 0.1
	done
}
online() { [ "$(in_node "$1" crm_mon -1 -r 2>/dev/null | sed -n 's/.*Online: \[ \(.*\) \].*/\1/p' | wc -w)" = 3 ]; }
where() { in_node "$1" crm_resource --locate --resource dummy 2>/dev/null | sed -n 's/.*running on: \(n[0-9]\).*/\1/p'; }
somewhere() { [ -n "$(where "$1")" ]; }

now() { date +%s%N; }
since() { echo $((($2 - $1) / 1000000)); } # ms from $1 to $2, both in ns
late() { [ "$(since "$1" "$(now)")" -lt 60000 ] || { echo "bench/pacemaker.sh: not restarted within 60 s" >&2; exit 1; }; }
head_of() { # NAME
	echo "$1, timers that ship, load $(cut -d' ' -f1-3 /proc/loadavg)"
	echo
	echo "| run | killed | restarted on | started ms | shown ms |"
	echo "|---|---|---|---|---|"
}
# row RUN KILLED ON STARTED SHOWN
row() {
	echo "| $1 | $2 | $3 | $4 | $5 |"
	started+=("$4")
	shown+=("$5")
}

# written I: when Dummy's start wrote its state on node I, in ns; empty: it did not.
written() {
	local t
	t=$(in_node "$1" stat -c %.9Y /run/resource-agents/Dummy-dummy.state 2>/dev/null || in_node "$1" stat -c %.9Y /run/Dummy-dummy.state 2>/dev/null) || return 0
	echo "${t/./}"
}

pacemaker_cut() { # RUN
	local n i o t0 k w
	n=$(where 1 || true)
	[ -n "$n" ] || n=$(where 2)
	i=${n#n}
	o=$((i % 3 + 1))
	disown -a # their end is no news
	t0=$(now)
	kill -9 "$(init "$i")"
	ip link del "$pre$i" 2>/dev/null || true
	while :; do
		k=$(where "$o" || true)
		[ -z "$k" ] || [ "$k" = "$n" ] || break
		late "$t0"
		sleep 0.02
	done
	local end
	end=$(now)
	w=
	while [ -z "$w" ]; do # the answer may come before the file
		w=$(written "${k#n}")
		late "$t0"
	done
	row "$1" "$n" "$k" "$(since "$t0" "$w")" "$(since "$t0" "$end")"
	node "$i"
	await 60 "n$i is back" online "$o"
	sleep 2
}

pacemaker() {
	local i run
	for i in 1 2 3; do node "$i"; done
	await 60 "three nodes are online" online 1
	in_node 1 crm_attribute --type crm_config --name stonith-enabled --update false
	in_node 1 cibadmin --create --scope resources --xml-text '<primitive id="dummy" class="ocf" provider="pacemaker" type="Dummy"><operations><op id="dummy-monitor" name="monitor" interval="10s"/></operations></primitive>'
	await 30 "the resource runs" somewhere 1
	head_of "Pacemaker $(pacemakerd --version | sed -n 's/^Pacemaker \([^ ]*\).*/\1/p') and Corosync $(corosync -v | sed -n "s/.*version '\([^']*\)'.*/\1/p")"
	for run in $(seq "$runs"); do pacemaker_cut "$run"; done
	summary Pacemaker
	for i in "${pids[@]}"; do kill -9 "$i" 2>/dev/null || true; done
}

# summary NAME: median and worst of both.
summary() {
	echo
	echo "$1, ${#started[@]} cuts: started median $(middle "${started[@]}"), worst $(last "${started[@]}") ms; shown median $(middle "${shown[@]}"), worst $(last "${shown[@]}") ms"
	echo
	started=() shown=()
}
middle() { printf '%s\n' "$@" | sort -n | sed -n "$((($# + 1) / 2))p"; }
last() { printf '%s\n' "$@" | sort -n | tail -n 1; }

roseau=$(cd "$(dirname "$0")/.." && pwd)/bin/roseau
field() { timeout 3 "$roseau" vm show dummy -o json 2>/dev/null | tr -d '\n'; }
node_of() { sed -n 's/.*"state": "running",[^}]*"node": "\(n[0-9]*\)".*/\1/p'; }
# resumed: when QEMU told that the guest runs, in ns.
resumed() {
	local t
	t=$(field | sed -n 's/.*"resumed": "\([^"]*\)".*/\1/p')
	[ -z "$t" ] || date -d "$t" +%s%N
}

roseau_cut() { # RUN
	local n m t0 end w
	n=$(field | node_of)
	[ -n "$n" ] || { echo "bench/pacemaker.sh: the VM runs nowhere: $(field)" >&2; exit 1; }
	t0=$(now)
	"$roseau" lab node cut "$n" >/dev/null
	while :; do
		m=$(field | node_of)
		[ -z "$m" ] || [ "$m" = "$n" ] || break
		late "$t0"
		sleep 0.02
	done
	end=$(now)
	w=
	while [ -z "$w" ] || [ "$w" -lt "$t0" ]; do # the status may come before its steps
		w=$(resumed)
		late "$t0"
	done
	row "$1" "$n" "$m" "$(since "$t0" "$w")" "$(since "$t0" "$end")"
	"$roseau" lab node restore "$n" >/dev/null
	await 60 "three nodes are ready" three_ready
	sleep 3
}
three_ready() { [ "$("$roseau" node list -o json | grep -c '"ready": true')" = 3 ]; }

roseau_half() {
	local run
	[ -x "$roseau" ] || { echo "bench/pacemaker.sh: $roseau is missing: make build" >&2; exit 1; }
	lab=bench-failover
	export ROSEAU_LAB=$lab XDG_CONFIG_HOME=$dir/config # the lab that a person has up stays selected
	"$roseau" lab up --fresh --name $lab >/dev/null
	"$roseau" vm create dummy --memory 64MiB --network lan --start >/dev/null 2>&1
	head_of Roseau
	for run in $(seq "$runs"); do roseau_cut "$run"; done
	summary Roseau
}

started=() shown=()
[ "$only" = roseau ] || pacemaker
[ "$only" = pacemaker ] || roseau_half
