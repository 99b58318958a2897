"""A deterministic simulation: the real asyncio code of scheduler and agents on virtual time, with faults by seed."""
