"""Reads job specs written by people, YAML or JSON, and says exactly where and how one is wrong.

It decides the *shape* only: which fields exist and of which type. Whether values make sense is the scheduler's word
(INVALID_ARGUMENT at submission), so that rules live in one place. All faults of a text are reported at once, each
with its line.
"""

from __future__ import annotations

from collections.abc import Iterator

import yaml

from .errors import InvalidSpec
from .specfields import Checker
from .v1.job_pb2 import JobSpec

MAX_BYTES = 256 * 1024  # of one text; etcd takes 1.5 MiB, a spec is a screenful

_Problem = yaml.error.MarkedYAMLError


def load_spec(text: str) -> JobSpec:
    """The one job spec in `text`. Raises InvalidSpec, also when there is not exactly one.

    >>> load_spec("{image: debian-numpy, command: [echo, hello], gpus: {count: 1}}").gpus.count
    1
    """
    specs = load_specs(text)
    if len(specs) != 1:
        raise InvalidSpec([f"one job is wanted here, the text has {len(specs)}"])
    return specs[0]


def load_specs(text: str) -> list[JobSpec]:
    """Every job spec in `text`: one for each YAML document, or the items of a top-level list.

    Raises InvalidSpec with all faults. Aliases are allowed; merge keys (`<<`) are not, since they let a small text
    describe an enormous one.
    """
    if len(text.encode("utf-8", "replace")) > MAX_BYTES:
        raise InvalidSpec([f"the text is longer than {MAX_BYTES} bytes; is it a job spec?"])
    try:
        loader = yaml.SafeLoader(_without_tabs(text))
        return _convert(loader)
    except yaml.YAMLError as error:
        raise InvalidSpec([_syntax(error)]) from None
    except RecursionError:
        raise InvalidSpec(["the text is nested too deeply for a job spec"]) from None


def _without_tabs(text: str) -> str:
    """JSON may be indented with tabs, which YAML refuses; inside JSON strings a raw tab is illegal anyway."""
    return text.replace("\t", " ") if text.lstrip()[:1] in {"{", "["} else text


def _convert(loader: yaml.SafeLoader) -> list[JobSpec]:
    specs: list[JobSpec] = []
    violations: list[str] = []
    for node in _documents(loader):
        checker = Checker(loader)
        spec = checker.job(node)
        specs.append(spec)
        violations += checker.violations
    if violations:
        raise InvalidSpec(violations)
    if not specs:
        raise InvalidSpec(["the text has no job; start with `image:` and `command:`, see examples/hello.yaml"])
    return specs


def _documents(loader: yaml.SafeLoader) -> Iterator[yaml.Node]:
    while loader.check_node():
        node = loader.get_node()
        if node is None or node.tag == "tag:yaml.org,2002:null":
            continue  # an empty document, such as after a last "---"
        if isinstance(node, yaml.SequenceNode):
            yield from node.value
        else:
            yield node


def _syntax(error: yaml.YAMLError) -> str:
    if not isinstance(error, _Problem) or error.problem_mark is None:
        return f"not YAML: {' '.join(str(error).split())}"
    mark = error.problem_mark
    hint = "; indent with spaces, not tabs" if "\\t" in (error.problem or "") else ""
    return f"line {mark.line + 1}, column {mark.column + 1}: not YAML: {error.problem or error.context}{hint}"
