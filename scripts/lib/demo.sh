#!/usr/bin/env bash
# What scripts/quickstart shows, run on the host with KVM: one sandbox, and stock ssh into it.
set -euo pipefail

# show CMD...: prints a command as one would type it, then runs it.
show() {
  printf '$ %s\n' "$*"
  "$@"
}

# All in a directory of its own, so that it stays apart from the sandboxes and the ssh configuration of the user.
work=$(mktemp -d)
export MSB_HOME=$work/home MSB_RUNTIME_DIR=$work/run
finish() {
  msb rm -f demo >/dev/null 2>&1 || true
  rm -rf "$work"
}
trap finish EXIT

show msb create --name demo
msb ssh-config >"$work/config"
show ssh -F "$work/config" demo.msb uname -a
show ssh -F "$work/config" demo.msb 'cat /etc/os-release; exit 3' || printf '(exit status %d, as the command had it)\n' $?
show msb ls
show msb rm -f demo
