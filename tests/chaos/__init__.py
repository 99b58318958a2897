"""Chaos: real etcd members, schedulers, agents and VMs, each node in a network namespace of its own, broken at random.

`make chaos`, or `python -m tests.chaos --seed 7 --seconds 300`. The plan follows from the seed alone.
"""
