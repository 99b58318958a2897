"""The libvirt domain of a VM, built purely: the same shape in, the same bytes out."""
