"""Measurements of gpupool on one machine, each beside what limits it: `python -m bench`, or `make bench`."""
