"""Simulated hosts: a synthetic sysfs tree, and the kernel's side of it."""
