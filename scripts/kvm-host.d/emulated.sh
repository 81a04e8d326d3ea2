# shellcheck shell=bash
# The emulated host of scripts/kvm-host. Source after common.sh.
#
# Its kernel is Debian's, as a package: kvm_amd, 9p, overlayfs and virtio are modules of it. Its initramfs holds those
# modules and, as /init, the same binary that starts QEMU. All of it is cached under a hash of the sources.

: "${root:?source common.sh first}" "${cache:?}"
source_directory=$root/scripts/kvm-host.d
modules=(virtio_pci virtio_console 9pnet_virtio 9p virtio_blk ext4 overlay kvm_amd tun fuse)

# emulated_host: the directory of the prepared host; it exists only when complete.
emulated_host() {
  echo "$cache/kvm-host-$(fingerprint "$source_directory"/{Cargo.toml,emulated.sh,src/*.rs})"
}

# prepare_emulated: makes the emulated host unless it is there.
prepare_emulated() {
  local work result lock
  # shellcheck source=scripts/lib/packages.sh
  source "$root/scripts/lib/packages.sh"
  install_missing "$emulation_needs" "the emulated KVM host"
  result=$(emulated_host)
  [[ ! -d $result ]] || return 0
  mkdir -p "$cache"
  exec {lock}>"$cache/kvm-host.lock"
  flock "$lock"
  if [[ ! -d $result ]]; then
    say "preparing the emulated KVM host, once"
    work=$(mktemp -d "$cache/kvm-host-build.XXXXXX")
    # shellcheck disable=SC2064  # the directory of now
    trap "rm -rf '$work'" EXIT
    mkdir "$work/result"
    build_binary "$work/result/kvm-host"
    unpack_kernel "$work/kernel"
    extract_vmlinux "$work"/kernel/boot/vmlinuz-* "$work/result/vmlinux"
    build_host_initramfs "$work/kernel" "$work/result" "$work/initramfs"
    truncate -s 16G "$work/result/scratch.ext4"
    PATH=$PATH:/usr/sbin:/sbin mkfs.ext4 -q -F -E lazy_itable_init=1,lazy_journal_init=1,nodiscard "$work/result/scratch.ext4"
    publish "$work/result" "$result"
    rm -rf "$work"
    trap - EXIT
    # What earlier versions and killed builds left.
    find "$cache" -maxdepth 1 -name 'kvm-host-*[0-9A-Za-z]' ! -name '*-target' -mtime +7 -exec rm -rf {} +
  fi
  exec {lock}>&-
}

# build_binary OUT
build_binary() {
  # shellcheck source=scripts/lib/packages.sh
  source "$root/scripts/lib/packages.sh"
  require_cargo
  # A target directory of its own: a build that runs in the checkout does not hold this one up.
  (cd "$root" && CARGO_TARGET_DIR=$cache/kvm-host-target cargo build --quiet --locked --release -p msb-kvm-host) \
    || die "cannot build scripts/kvm-host.d (the reason is above)"
  cp "$cache/kvm-host-target/x86_64-unknown-linux-gnu/release/kvm-host" "$1"
}

# unpack_kernel DIR: Debian's kernel package, without installing it.
unpack_kernel() {
  local package
  package=$(apt-cache depends linux-image-amd64 2>/dev/null | awk '/Depends: linux-image/ {print $2; exit}')
  if [[ -z $package && $(id -u) == 0 ]]; then
    apt-get -qq update
    package=$(apt-cache depends linux-image-amd64 2>/dev/null | awk '/Depends: linux-image/ {print $2; exit}')
  fi
  [[ -n $package ]] || die "apt knows no package linux-image-amd64, whose kernel the emulated host needs: \
this must be Debian, and 'apt-get update' must have run"
  download "$package" "${1%/*}" 2>/dev/null \
    || { [[ $(id -u) == 0 ]] && apt-get -qq update && download "$package" "${1%/*}"; } \
    || die "apt-get could not download $package (its reason is above)"
  dpkg -x "${1%/*}"/linux-image-*.deb "$1"
}

# download PACKAGE DIR
download() {
  (cd "$2" && apt-get -qq -o APT::Sandbox::User=root download "$1" >/dev/null)
}

# extract_vmlinux BZIMAGE OUT: the kernel inside, which QEMU boots as it is; to unpack itself takes the kernel seconds on
# an emulated CPU. The offsets are those of the setup header (Documentation/arch/x86/boot.rst in the kernel's source).
extract_vmlinux() {
  local setup_sectors payload_offset payload_length
  setup_sectors=$(od -An -tu1 -j $((0x1f1)) -N1 "$1")
  payload_offset=$(od -An -tu4 -j $((0x248)) -N4 "$1")
  payload_length=$(od -An -tu4 -j $((0x24c)) -N4 "$1")
  # The payload ends with its uncompressed length: hence --single-stream, and readers that stop before the end.
  set +o pipefail
  tail -c +$(((setup_sectors + 1) * 512 + payload_offset + 1)) "$1" | head -c "$payload_length" \
    | xz -dc --single-stream >"$2"
  set -o pipefail
  [[ $(head -c 4 "$2") == $'\x7fELF' ]] || die "cannot unpack the kernel in $1: is it compressed with xz?"
}

# build_host_initramfs KERNEL RESULT WORK
build_host_initramfs() {
  local version module file
  version=$(basename "$1"/lib/modules/*)
  mkdir -p "$3/modules"
  export PATH=$PATH:/usr/sbin:/sbin
  depmod -b "$1" "$version"
  for module in "${modules[@]}"; do
    modprobe -d "$1" -S "$version" --show-depends "$module" | awk '$1 == "insmod" {print $2}'
  done | awk '!seen[$0]++' | while read -r file; do
    cp "$file" "$3/modules/"
    basename "$file" >>"$3/modules/order"
  done
  # Without their signatures: to verify them takes seconds on an emulated CPU.
  strip --strip-debug "$3"/modules/*.ko
  cp "$2/kvm-host" "$3/init"
  (cd "$3" && find . | LC_ALL=C sort | cpio --quiet -o -H newc) >"$2/initramfs"
}

# One CPU unless asked otherwise: with two, QEMU 7.2 now and then loses an interrupt between them while a guest runs, and
# the emulated host's kernel reports soft lockups from then on. One is faster, too, for all but parallel work.
#
# No ERMS and FSRM: QEMU runs a string instruction one element a step, and with these two promised, kernels and libc copy
# byte by byte, which makes a boot three times as long.
#
# run_emulated CMD...: becomes the process that runs CMD inside, so that a signal to it ends QEMU, too.
run_emulated() {
  local host memory
  host=$(emulated_host)
  memory=$(awk '/^MemTotal:/ {half = int($2 / 2048); print half < 6144 ? half : 6144}' /proc/meminfo)
  exec "$host/kvm-host" "$host/vmlinux" "$host/initramfs" "$host/scratch.ext4" "$MSB_KVM_HOST_OUT" \
    "${MSB_KVM_HOST_MEMORY:-$memory}" "${MSB_KVM_HOST_CPUS:-1}" "${MSB_KVM_HOST_CPU:-max,-erms,-fsrm}" \
    "${MSB_KVM_HOST_TIMEOUT:-0}" "$@"
}
