# shellcheck shell=bash
# What this project needs from Debian or Ubuntu. Source after common.sh.
: "${root:?source common.sh first}"

# "FILE PACKAGE" a line, grouped by what needs them: a file is looked up in PATH, or taken as a path when it has a /.
kernel_needs='
gcc gcc
make make
flex flex
bison bison
bc bc
patch patch
xz xz-utils
/usr/include/libelf.h libelf-dev
/usr/include/stdlib.h libc6-dev'
kernel_source_needs='
/usr/src/linux-source-6.12.tar.xz linux-source-6.12'
image_needs='
gcc gcc
cpio cpio
rsync rsync
/sbin/mke2fs e2fsprogs
mkfs.erofs erofs-utils
busybox busybox-static'
# shellcheck disable=SC2034
build_needs="gcc gcc
/usr/include/stdlib.h libc6-dev$kernel_needs$kernel_source_needs$image_needs"
# shellcheck disable=SC2034
emulation_needs='
qemu-system-x86_64 qemu-system-x86
modprobe kmod
strip binutils
xz xz-utils
mkfs.ext4 e2fsprogs
cpio cpio'
# shellcheck disable=SC2034
fuzz_needs='
c++ g++'
debian_needs='
mmdebstrap mmdebstrap'
# shellcheck disable=SC2034
test_needs="$debian_needs
ssh openssh-client
sftp openssh-client
sshd openssh-server
ss iproute2
rsync rsync
shellcheck shellcheck
ansible-playbook ansible-core
curl curl
dbclient dropbear-bin
git git
lftp lftp
plink putty-tools
/usr/lib/python3/dist-packages/asyncssh python3-asyncssh
/usr/lib/python3/dist-packages/paramiko python3-paramiko
ssh-audit ssh-audit
fusermount3 fuse3
sshfs sshfs
docker-registry docker-registry
dpkg-deb dpkg
skopeo skopeo"

# missing_packages NEEDS: the packages of those files that are not here, one a line.
missing_packages() {
  local file package
  while read -r file package; do
    [[ -n $file ]] || continue
    case $file in
      /*) [[ -e $file ]] || echo "$package" ;;
      *) PATH=$PATH:/usr/sbin:/sbin type -P "$file" >/dev/null || echo "$package" ;;
    esac
  done <<<"$1" | sort -u
}

# require NEEDS WHY: ends the script unless all is here; names the packages and the command that installs them.
require() {
  local packages
  packages=$(missing_packages "$1" | paste -sd' ')
  [[ -z $packages ]] || die "$2 needs packages that are not installed: $packages
Install them as root: apt-get install --no-install-recommends $packages"
}

# install_missing NEEDS WHY: like require, but installs what is missing when it can (root on Debian or Ubuntu).
install_missing() {
  local packages
  packages=$(missing_packages "$1" | paste -sd' ')
  [[ -n $packages ]] || return 0
  [[ $(id -u) == 0 ]] && type -P apt-get >/dev/null || require "$1" "$2"
  say "installing for $2: $packages"
  # shellcheck disable=SC2086  # one word a package
  DEBIAN_FRONTEND=noninteractive apt-get -qq -o Dpkg::Use-Pty=0 -o DPkg::Lock::Timeout=300 \
    install -y --no-install-recommends $packages >/dev/null 2>&1 \
    || { apt-get -qq update \
      && DEBIAN_FRONTEND=noninteractive apt-get -qq -o Dpkg::Use-Pty=0 -o DPkg::Lock::Timeout=300 \
        install -y --no-install-recommends $packages >/dev/null; } \
    || die "apt-get could not install: $packages (its reason is above)"
  require "$1" "$2"
}

# require_cargo: ends the script unless cargo is new enough for the workspace; rustup's place is searched, too.
require_cargo() {
  local wanted found
  PATH=$PATH:${CARGO_HOME:-$HOME/.cargo}/bin
  wanted=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' "$root/Cargo.toml")
  found=$(cargo --version 2>/dev/null | cut -d' ' -f2) || found=
  [[ -n $found && $(printf '%s\n' "$wanted" "$found" | sort -V | head -n1) == "$wanted" ]] && return
  die "this needs Rust $wanted or newer; cargo here: ${found:-none}.
Debian's own is older. Install it with rustup: https://rustup.rs, or
  curl --proto '=https' --tlsv1.2 -sSf https://sh.rustup.rs | sh -s -- -y --profile minimal -c rustfmt -c clippy"
}
