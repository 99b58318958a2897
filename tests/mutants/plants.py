"""All mutants, by what they are of."""

from __future__ import annotations

from tests.mutants.plants_agent import AGENT
from tests.mutants.plants_backfill import BACKFILLS
from tests.mutants.plants_clocks import CLOCKS
from tests.mutants.plants_damaged import DAMAGED
from tests.mutants.plants_demands import DEMANDS
from tests.mutants.plants_drain import DRAIN
from tests.mutants.plants_gangs import GANGS
from tests.mutants.plants_guard import GUARD
from tests.mutants.plants_lent import LENT
from tests.mutants.plants_packing import PACKING
from tests.mutants.plants_policies import POLICIES
from tests.mutants.plants_power import POWER_FENCING
from tests.mutants.plants_promises import PROMISES
from tests.mutants.plants_reclaim import RECLAIM
from tests.mutants.plants_reserve import RESERVATION
from tests.mutants.plants_scheduler import SCHEDULER
from tests.mutants.plants_simulate import SIMULATE
from tests.mutants.plants_store import STORE
from tests.mutants.plants_twins import TWINS
from tests.mutants.plants_victims import VICTIMS

ALL_MUTANTS = (
    *AGENT, *GUARD, *DRAIN, *POLICIES, *PROMISES, *RESERVATION, *SCHEDULER, *STORE, *POWER_FENCING,
    *DEMANDS, *LENT, *GANGS, *SIMULATE, *CLOCKS, *TWINS, *RECLAIM, *PACKING, *VICTIMS, *DAMAGED, *BACKFILLS,
)  # fmt: skip
