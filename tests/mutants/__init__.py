"""Protocol bugs planted on purpose: each must be seen by the simulation, a scenario, a test or the model."""
