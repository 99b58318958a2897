"""Other programs that gpupool starts as its children: for a laptop, a demonstration, tests."""
