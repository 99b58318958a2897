"""What runs here is made to be what the allocations say: records, plan, actions, reports."""
