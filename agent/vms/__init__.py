"""Virtual machines: libvirt, the domain XML, the guest's channel, images."""
