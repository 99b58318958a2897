"""Who may start next: order, limits, shares, preemption, backfill, dependencies, and the ends of jobs."""
