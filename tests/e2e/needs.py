"""What a test needs of the machine that it runs on, as marks: it is skipped, with the reason, where that is missing."""

from __future__ import annotations

import os
import shutil

import pytest

ETCD = [
    pytest.mark.etcd,
    pytest.mark.skipif(not shutil.which("etcd"), reason="no etcd installed (apt-get install etcd-server)"),
]
VMS = [
    pytest.mark.vm,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
    pytest.mark.skipif(not shutil.which("qemu-system-x86_64"), reason="needs qemu-system-x86"),
]
