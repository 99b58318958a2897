#!/bin/sh
# Builds the wheel and tries it as a user would have it: in a fresh environment, away from the tree, beside an unrelated
# package called `scheduler`. The base must do for a client; the extras bring CLI and daemons.
set -eu
python=$(command -v "${1:-python3}")
case $python in /*) ;; *) python=$PWD/$python ;; esac
root=$(cd "$(dirname "$0")/.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

"$python" -m hatchling build -t wheel -d "$work" >/dev/null
wheel=$(ls "$work"/gpupool-*.whl)
# What is installed is what the lock names: same versions, nothing newer.
grep -oE '^[A-Za-z0-9._-]+==[^ ]+' "$root/requirements.lock" > "$work/constraints"

"$python" -m venv "$work/client"
"$work/client/bin/python" -m pip install -q --disable-pip-version-check -c "$work/constraints" "$wheel"
cd "$work"
"$work/client/bin/python" - <<'EOF'
import importlib.util
from gpupool.client import AsyncClient, Client
from gpupool.v1 import job_pb2
assert Client and AsyncClient and job_pb2.JobSpec(name="x").name == "x"
for absent in ("click", "yaml", "rich", "libvirt", "aetcd", "scheduler", "agent"):
    assert importlib.util.find_spec(absent) is None, absent
EOF

"$python" -m venv "$work/all"
"$work/all/bin/python" -m pip install -q --disable-pip-version-check -c "$work/constraints" "$wheel[all]"
site=$("$work/all/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
mkdir "$site/scheduler" && echo 'WHOSE = "somebody else"' > "$site/scheduler/__init__.py"
"$work/all/bin/python" - <<'EOF'
import gpupool.agent.agent, gpupool.scheduler.replica, scheduler
from gpupool.embedded.daemons import module_of
assert scheduler.WHOSE == "somebody else"
assert module_of("scheduler") == "gpupool.scheduler" and module_of("agent") == "gpupool.agent"
EOF
for command in gpupool gpupool-scheduler gpupool-agent; do "$work/all/bin/$command" --help >/dev/null; done
"$work/all/bin/gpupool" version
echo "wheel: $(basename "$wheel") installs as a client and with its daemons"
