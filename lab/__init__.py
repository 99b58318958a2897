"""The VFIO lab: GPU hosts that are emulated down to the IOMMU, so that real vfio-pci, libvirt and QEMU run in them.

An outer QEMU without KVM boots a "GPU host", called L1 here; the agent inside starts guests, L2, which own PCI devices
of the L1. `machine` describes a host, `images` builds what it boots, `host` runs it, `cluster` runs several with a real
etcd and scheduler outside. Nothing in the product may import this package.
"""
