"""gpupool: jobs as virtual machines that own real GPUs, restarted elsewhere when their host dies."""
