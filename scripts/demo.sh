#!/usr/bin/env bash
# Raises the lab, runs the drill and says what to try next. The lab stays up.
set -euo pipefail
cd "$(dirname "$0")/.."
started=$SECONDS
roseau=$PWD/bin/roseau
if [ "$(id -u)" != 0 ]; then
  echo "demo: the lab makes network namespaces: sudo is needed for it"
  exec sudo --preserve-env=PATH,HOME "$0"
fi
"$roseau" lab up
"$roseau" drill run --report .cache/drill
cat <<EOF

The lab is up (this took $((SECONDS - started)) s). The report: .cache/drill/report.html. Try next:

  bin/roseau cluster status
  bin/roseau node list;  bin/roseau disk list;  bin/roseau pool list
  bin/roseau vm list;    bin/roseau events
  bin/roseau lab status
  bin/roseau lab node cut n2;  bin/roseau cluster status;  bin/roseau lab node restore n2
  bin/roseau lab down          # leaves nothing behind
EOF
