#!/bin/sh
# make fresh: what a stranger does on a new Debian, with nothing but what apt has.
#
#   tests/fresh.sh SUITE [TARGET...]       make demo and make test in a new bookworm, trixie or sid
#
# Needs root and debootstrap. The system is made in build/fresh/SUITE from the archive that this
# machine's apt uses; HEAD is cloned into it, and make runs there. The mounts and all processes are
# in namespaces of their own, so both end with this script, however it ends.
set -eu
umask 022

die() { echo "fresh: $*" >&2; exit 2; }
say() { echo "fresh: $*" >&2; }

[ $# -ge 1 ] || die "which Debian? make fresh DEBIAN=trixie"
suite=$1
shift
[ $# -ge 1 ] || set -- demo test
[ "$(id -u)" = 0 ] || die "debootstrap and mounts need root"
command -v debootstrap >/dev/null || die "no debootstrap: apt-get install debootstrap"
cd "$(dirname "$0")/.."
if [ -z "${KVI_FRESH:-}" ]; then
  KVI_FRESH=1 unshare --mount --pid --fork --kill-child --propagation private \
    tests/fresh.sh "$suite" "$@" &
  trap 'kill -KILL $!' INT TERM HUP
  wait $!
  exit
fi

# Where this machine has its own release from, the others are as well.
# shellcheck disable=SC2016
mirror=$(apt-get indextargets --format '$(REPO_URI) $(COMPONENT) $(RELEASE)' \
    'Created-By: Packages' 'Origin: Debian' \
  | awk '$2 == "main" && $3 !~ /-/ { print $1; exit }')
[ -n "$mirror" ] || die "apt has no list of Debian's: apt-get update"

root=$PWD/build/fresh/$suite
packages=$PWD/build/fresh/packages
log=$PWD/build/fresh/$suite.txt
mkdir -p "$packages"
rm -rf --one-file-system "$root"
say "making a Debian $suite; its log is $log"
debootstrap --variant=minbase --cache-dir="$packages" \
  --include=ca-certificates,git,make,python3,python3-pip,python3-venv \
  "$suite" "$root" "$mirror" >"$log" 2>&1 || { tail -5 "$log" >&2; die "debootstrap failed"; }

# Of this machine it has the way to the network, no more: names, certificates, proxies, pip's index.
cp /etc/resolv.conf /etc/hosts "$root/etc/"
find /usr/local/share/ca-certificates -name '*.crt' -exec cp {} "$root/usr/local/share/ca-certificates/" \;
apt-config dump | sed -nE '/^Acquire::(https?::(Proxy|CaInfo)|Check-)/p' >"$root/etc/apt/apt.conf.d/90machine"
{
  echo "[global]"
  echo "cert = /etc/ssl/certs/ca-certificates.crt"
  python3 -m pip config list 2>/dev/null \
    | sed -nE "s/^(global|:env:)\.(index-url|proxy|trusted-host|default-timeout)='(.*)'$/\2 = \3/p"
} >"$root/etc/pip.conf"
git clone -q --depth 1 "file://$PWD" "$root/kvi"

mount -t proc proc "$root/proc"
mount -t sysfs -o ro sys "$root/sys"
mount --rbind /dev "$root/dev"
inside() {
  env -i HOME=/root LANG=C.UTF-8 PATH=/usr/sbin:/usr/bin:/sbin:/bin TERM="${TERM:-dumb}" \
    ${http_proxy:+http_proxy="$http_proxy"} ${https_proxy:+https_proxy="$https_proxy"} \
    ${no_proxy:+no_proxy="$no_proxy"} chroot "$root" "$@"
}
inside update-ca-certificates >>"$log" 2>&1
say "Debian $(inside cat /etc/debian_version), $(inside python3 --version), $(inside git -C /kvi log -1 --format='%h %s')"
for target in "$@"; do
  say "make $target"
  inside make -C /kvi --no-print-directory "$target" || die "make $target failed on Debian $suite"
done
say "make $*: all well on Debian $suite"
