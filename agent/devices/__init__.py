"""The host's devices: what there is, handing them out, taking them back, proving them clean."""
