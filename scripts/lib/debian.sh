# shellcheck shell=bash
# A Debian system as an archive, for images. Source after common.sh.
: "${root:?source common.sh first}"

# debian TAR [PACKAGES]: makes an archive of Debian 12 with apt and PACKAGES, with commas between them, unless it is there.
debian() {
  [[ ! -e $1 ]] || return 0
  say "making $1, once"
  mkdir -p "$(dirname "$1")"
  mmdebstrap --quiet --variant=apt ${2:+--include="$2"} bookworm "$1.$$.tar" >&2 || {
    rm -f "$1.$$.tar"
    die "mmdebstrap cannot make $1 (its reason is above): as root, with a Debian mirror that apt reaches?"
  }
  mv "$1.$$.tar" "$1"
}
