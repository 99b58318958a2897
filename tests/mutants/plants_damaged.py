"""Mutants of damaged records: nothing is started, stopped or forgotten for them."""

from __future__ import annotations

from tests.mutants.model import Edit, Mutant, tests

SOUND = "scheduler/codec/sound.py"
ALONE = "unit/test_damaged_records.py::test_a_job_whose_record_cannot_be_so_is_left_alone"

DAMAGED = (
    Mutant(
        "running without an attempt",
        "a record that says RUNNING and has no attempt ends the leader that loads it",
        [Edit(SOUND, "    if state and not job.attempts:\n", "    if False:\n")],
        tests(ALONE),
        fast=True,
    ),
    Mutant(
        "a second VM for a damaged record",
        "a job whose record has lost its attempts is placed again while its VM runs",
        [Edit(SOUND, "    if allocated > count:\n", "    if False:\n")],
        tests(ALONE),
        fast=True,
    ),
)
