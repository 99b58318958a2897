#!/bin/sh
# Installs, through apt, what the project needs of the system and does not find. Says what is missing where it may not.
set -eu
python=${1:-python3}

want=""
need() { command -v "$1" >/dev/null 2>&1 || [ -x "/usr/sbin/$1" ] || want="$want $2"; }
need etcd etcd-server
need etcdctl etcd-client  # for the tests of a restored store
need qemu-system-x86_64 qemu-system-x86
need qemu-img qemu-utils
need libvirtd libvirt-daemon
need virt-xml-validate libvirt-clients
need xmllint libxml2-utils
need pkg-config pkg-config
need gcc gcc
need mke2fs e2fsprogs
need cpio cpio
need openssl openssl
need fence_redfish fence-agents  # for the tests of power fencing
[ -e /usr/share/OVMF/OVMF_CODE_4M.fd ] || want="$want ovmf"  # firmware for guests that boot by UEFI
ls /usr/lib/*/libvirt/connection-driver/libvirt_driver_qemu.so >/dev/null 2>&1 || want="$want libvirt-daemon-driver-qemu"
pkg-config --exists libvirt 2>/dev/null || want="$want libvirt-dev"
"$python" -c 'import sysconfig, os, sys; sys.exit(not os.path.exists(sysconfig.get_path("include") + "/Python.h"))' ||
  want="$want python3-dev"
"$python" -c 'import ensurepip, venv' 2>/dev/null || want="$want python3-venv"

as_root() { if [ "$(id -u)" = 0 ]; then "$@"; else sudo -n "$@"; fi; }

if [ -n "$want" ]; then
  if [ "$(id -u)" != 0 ] && ! sudo -n true 2>/dev/null; then
    echo "error: these Debian packages are missing, and installing them needs root:$want" >&2
    echo "       run: sudo apt-get install --no-install-recommends$want" >&2
    exit 1
  fi
  echo "installing system packages:$want"
  as_root apt-get -qq update
  # shellcheck disable=SC2086
  as_root env DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends $want >/dev/null
fi

# libvirt's QEMU driver looks this user up even where it is told to use another.
if ! getent passwd libvirt-qemu >/dev/null; then
  getent group libvirt-qemu >/dev/null || as_root groupadd --system libvirt-qemu
  as_root useradd --system --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin \
    --gid libvirt-qemu libvirt-qemu
fi
