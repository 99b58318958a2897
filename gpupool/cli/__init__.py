"""The command line: `gpupool`. It shows and asks; every decision is the scheduler's."""
