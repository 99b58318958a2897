"""What the scheduler knows: facts that others wrote, records of its own, their tables of states, and small indexes."""
