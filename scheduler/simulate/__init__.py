"""`gpupool simulate`: the real placement core on recorded or made-up loads. No daemon, no store, no network."""
