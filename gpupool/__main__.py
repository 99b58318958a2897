"""`python -m gpupool` is the command line."""

from gpupool.cli.__main__ import main

main()
