# shellcheck shell=bash
# Shared by all scripts: where things are, and how they speak. To be sourced.

export HOME=${HOME:-~}
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
# shellcheck disable=SC2034  # used by the scripts that source this file
cache=${MSB_CACHE:-${XDG_CACHE_HOME:-~/.cache}/msb}
# shellcheck disable=SC2034
tree=$root/target/msb

# say WORDS...: progress, on stderr.
say() {
  printf '%s: %s\n' "${0##*/}" "$*" >&2
}

# die WORDS...: what failed and how to mend it; ends the script with 1.
die() {
  printf '%s: error: %s\n' "${0##*/}" "$*" >&2
  exit 1
}

# usage_error WORDS...: ends the script with 2.
usage_error() {
  printf '%s: %s\nTry %s --help\n' "${0##*/}" "$*" "$0" >&2
  exit 2
}

# help: prints the comment that opens the script, without its "# ".
help() {
  sed -n '2,/^[^#]/{s/^# \{0,1\}//p}' "$0"
}

# fingerprint FILE...: one short hash over the contents, in the order given.
fingerprint() {
  cat -- "$@" | sha256sum | cut -c1-16
}

# publish FROM TO: moves a finished file or directory to its place; whoever comes second keeps what is there.
publish() {
  mkdir -p "$(dirname "$2")"
  mv -T --no-clobber -- "$1" "$2" 2>/dev/null || true
  rm -rf -- "$1"
  [[ -e $2 ]] || die "cannot put $2 in its place: check the space and the rights of $(dirname "$2")"
}

# refresh FROM TO: copies FROM to TO unless TO has the same content already; readers see the old or the new file.
refresh() {
  cmp -s -- "$1" "$2" && return
  mkdir -p "$(dirname "$2")"
  cp -- "$1" "$2.$$"
  mv -f -- "$2.$$" "$2"
}
