"""The pure core: facts change the state, decisions read it, and nothing here knows a clock, a network or a disk.

    for event in facts:
        step(cluster, event, now)        # facts change the state
    place(cluster, now)                  # decisions: which pending job goes where
    violations(cluster)                  # must be empty before every commit
    commit(cluster.take_dirty())         # the shell persists what changed ...
    act(todo(cluster, now))              # ... and only then acts

`now` is Unix time in seconds, always an argument. The same events in the same order give the same bytes.
"""
