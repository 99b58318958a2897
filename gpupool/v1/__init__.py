"""Generated from proto/gpupool/v1 by `make proto`; do not edit."""
