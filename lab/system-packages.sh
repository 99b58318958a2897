#!/bin/sh
# Installs, through apt, what building the lab's images takes beyond tools/system-packages.sh.
set -eu
want=""
need() { command -v "$1" >/dev/null 2>&1 || [ -x "/usr/sbin/$1" ] || want="$want $2"; }
need mmdebstrap mmdebstrap
need depmod kmod
need xz xz-utils
need busybox busybox-static
need lz4 lz4
need zstd zstd
[ -z "$want" ] && exit 0
[ "$(id -u)" = 0 ] || { echo "error: the lab needs root, and these Debian packages:$want" >&2; exit 1; }
echo "installing system packages:$want"
apt-get -qq update
# shellcheck disable=SC2086
DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends $want >/dev/null
