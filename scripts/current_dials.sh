#!/usr/bin/env bash
# Run the tests with the newest DIALS: the one of Debian sid, in a chroot that
# is built once (some minutes, about 5 GB) and kept.
#
#   scripts/current_dials.sh [PYTEST_ARGUMENT...]    e.g. -k scan -x
#   scripts/current_dials.sh --exec COMMAND...       another command, same place
#
# The chroot is $DIALS_HYBRID_CHROOT or ~/.cache/dials_hybrid/debian-sid; delete
# that folder to have it built anew.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
root=${DIALS_HYBRID_CHROOT:-${XDG_CACHE_HOME:-$HOME/.cache}/dials_hybrid/debian-sid}
packages=(
  python3-dials python3-torch python3-h5py python3-tqdm python3-jinja2
  python3-pytest python3-pytest-xdist python3-hypothesis python3-pip python3-setuptools
  python3-wheel python3-venv make git
)

die() {
  echo "current_dials: $*" >&2
  exit 1
}

[[ $(id -u) == 0 ]] || die "needs root, to make and enter a chroot (try: sudo make test-current-dials)"

# In a mount namespace of our own, so that no mount outlives this process, even
# when it is killed. Containers that forbid it get plain mounts and the trap.
if [[ -z ${DIALS_HYBRID_MOUNT_NS-} ]] && unshare --mount true 2>/dev/null; then
  exec env DIALS_HYBRID_MOUNT_NS=1 unshare --mount "${BASH_SOURCE[0]}" "$@"
fi
mkdir -p "$(dirname "$root")"
root=$(cd "$(dirname "$root")" && pwd)/$(basename "$root")
exec 9>"$root.lock"
flock 9 # one build, and one run, at a time

unmount() {
  for where in dev/shm sys proc; do
    for tree in "$root" "$root.partial"; do
      if mountpoint -q "$tree/$where"; then umount "$tree/$where"; fi
    done
  done
}
trap unmount EXIT

# A clean environment: what the host sets for its own Python or certificates
# names files that do not exist inside.
inside() {
  local tree=$1
  shift
  env -i HOME=/root TERM="${TERM:-dumb}" LANG=C.UTF-8 CI="${CI-}" \
    DEBIAN_FRONTEND=noninteractive \
    PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
    ${http_proxy:+http_proxy="$http_proxy"} \
    ${https_proxy:+https_proxy="$https_proxy"} \
    chroot "$tree" "$@"
}

# The Debian archive that this machine already uses, or else the public one.
mirror() {
  local found
  # shellcheck disable=SC2016  # apt expands these, not the shell
  found=$(apt-get indextargets --format '$(ORIGIN)|$(LABEL)|$(REPO_URI)' \
    'Created-By: Packages' 2>/dev/null |
    sed -n 's/^Debian|Debian|\(https\{0,1\}:.*\)$/\1/p' | head -n 1) || true
  echo "${found:-http://deb.debian.org/debian}"
}

# How the host reaches its archive (name servers, proxies, checks, extra
# certificates) is needed inside as well.
share_network() {
  local tree=$1
  if [[ -e /etc/resolv.conf ]]; then
    cp -L --remove-destination /etc/resolv.conf "$tree/etc/resolv.conf"
  fi
  apt-config dump | grep -E '^Acquire::(https?|ftp|Check|Retries)' \
    >"$tree/etc/apt/apt.conf.d/90host" || true
  if [[ -e /etc/ssl/certs/ca-certificates.crt ]]; then
    mkdir -p "$tree/etc/ssl/certs"
    cp -L /etc/ssl/certs/ca-certificates.crt "$tree/etc/ssl/certs/"
  fi
}

build() {
  local new=$root.partial
  if ! command -v debootstrap >/dev/null; then
    command -v apt-get >/dev/null || die "install debootstrap first"
    apt-get update && apt-get install -y --no-install-recommends debootstrap
  fi
  rm -rf --one-file-system "$new" # what an interrupted build left
  debootstrap --variant=minbase --include=ca-certificates sid "$new" "$(mirror)"
  share_network "$new"
  inside "$new" apt-get update
  inside "$new" apt-get install -y --no-install-recommends "${packages[@]}"
  inside "$new" apt-get clean
  umount "$new/proc" "$new/sys" 2>/dev/null || true # debootstrap mounts these
  mv "$new" "$root"
}

# What git tracks, and what it would: a copy, so that nothing done inside
# touches the checkout. The .venv of an earlier run stays.
copy_checkout() {
  local to=$root/src/dials_hybrid
  mkdir -p "$to"
  rm -rf "$root/src/shared"
  find "$to" -mindepth 1 -maxdepth 1 ! -name .venv -exec rm -rf {} +
  (
    cd "$here"
    # the option: the checkout may belong to another user than root
    git -c safe.directory='*' ls-files -z --cached --others --exclude-standard |
      while IFS= read -r -d '' file; do
        if [[ -e $file ]]; then printf '%s\0' "$file"; fi
      done | tar --create --null --files-from=- | tar --extract --directory="$to"
  )
  if [[ -d $here/../shared/data ]]; then
    mkdir -p "$root/src/shared"
    cp -r "$here/../shared/data" "$root/src/shared/data"
  fi
}

if [[ ! -d $root ]]; then
  echo "building $root (log: $root.log)"
  build >"$root.log" 2>&1 </dev/null || {
    tail -n 15 "$root.log" >&2
    die "could not build the chroot; the whole log is $root.log"
  }
fi

share_network "$root"
copy_checkout
mount -t proc proc "$root/proc" 2>/dev/null || true
mount -t tmpfs tmpfs "$root/dev/shm" 2>/dev/null || true

command=(.venv/bin/python -m pytest tests -q --numprocesses auto --dist worksteal "$@")
if [[ ${1-} == --exec ]]; then command=("${@:2}"); fi
# shellcheck disable=SC2016  # expanded by the shell inside
inside "$root" bash -c 'cd /src/dials_hybrid && make --no-print-directory env && exec "$@"' \
  _ "${command[@]}"
