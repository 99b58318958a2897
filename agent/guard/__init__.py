"""The guard: a process of its own that kills this host's VMs at a deadline."""
