#!/bin/bash
# boot.sh BASE OUTDIR: OUTDIR/{vmlinuz,initrd.img,root.ext4} from what rootfs.sh left in BASE. Must be root.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
base=$1 out=$2
release=$(basename "$base"/kernel/usr/lib/modules/*)
stage=$out/stage modules=$out/stage/usr/lib/modules/$release

# The modules a host needs, unpacked (the emulated CPU would be slow at it), with what they depend on.
WANTED=(kvm-amd vfio-pci vfio_iommu_type1 i6300esb softdog igb igbvf nvme virtio_blk virtio_net virtio_console virtio_rng
    virtio-gpu snd-hda-intel snd-hda-codec-generic ext4 overlay 9p 9pnet_virtio tun bridge veth macvtap vhost_net
    virtio_balloon pci-stub dummy)
mkdir -p "$out/initrd"/{bin,dev,proc,sys,modules,lower,rw,newroot}
cp -al "$base/root" "$stage"
mkdir -p "$modules" "$stage"/{lab,opt/gpupool,var/lib/gpupool}
[ -e "$base/kernel/lib" ] || ln -s usr/lib "$base/kernel/lib"
[ -e "$base/kernel/usr/lib/modules/$release/modules.dep.bin" ] || depmod -b "$base/kernel" "$release"
needed() {
    modprobe -d "$1" -S "$release" --show-depends "$2" 2> /dev/null | awk '/^insmod/ { print $2 }' ||
        { echo "boot.sh: kernel $release has no module $2" >&2; return 1; }
}
for name in "${WANTED[@]}"; do needed "$base/kernel" "$name"; done | awk '!seen[$0]++' | while read -r file; do
    path=$modules/${file#*/modules/"$release"/}
    mkdir -p "$(dirname "$path")"
    case $file in *.xz) xz -dc "$file" > "${path%.xz}" ;; *) cp "$file" "$path" ;; esac
done
cp "$base/kernel/usr/lib/modules/$release"/modules.{builtin,builtin.modinfo,order} "$modules/"
sed -i 's/\.ko\.xz$/.ko/' "$modules/modules.order"
depmod -b "$stage" "$release"

cp "$base/kernel/boot/vmlinuz-$release" "$out/vmlinuz"
cp "$base/root/usr/bin/busybox" "$out/initrd/bin/"
for name in virtio_pci virtio_blk ext4 overlay; do needed "$stage" "$name"; done | awk '!seen[$0]++' | while read -r file; do
    cp "$file" "$out/initrd/modules/"
    basename "$file" >> "$out/initrd/modules/order"
done
install -m 0755 "$here/initrd-init" "$out/initrd/init"
(cd "$out/initrd" && find . | LC_ALL=C sort | cpio -o -H newc --quiet) > "$out/initrd.img"

install -m 0755 "$here/init" "$here/execd.py" "$stage/lab/"
replace() { rm -f "$stage/$1" && cat > "$stage/$1"; }      # the tree's files are links to those of BASE
echo gpuhost | replace etc/hostname
printf '127.0.0.1 localhost\n' | replace etc/hosts
: | replace etc/resolv.conf
mke2fs -q -t ext4 -O ^has_journal -m 0 -L lab-root -d "$stage" "$out/root.ext4" \
    "$(($(du -sk "$stage" | cut -f1) * 115 / 100 + 16384))k"
rm -rf "$stage" "$out/initrd"
