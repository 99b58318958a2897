"""Options of the whole suite."""

from __future__ import annotations

import os

import pytest

# Tests of VMs have libvirt fork in this very process; see agent/__init__.py, which others may precede here.
os.environ["GRPC_ENABLE_FORK_SUPPORT"] = "0"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--rewrite", action="store_true", help="write the golden logs anew; read the diff")
