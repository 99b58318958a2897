"""The schema side of `gpupool.spec`: walks a YAML tree along the protobuf description of JobSpec.

protobuf's own json_format stops at the first fault and names neither line nor, often, path; so the tree is checked
here first, and json_format only converts what has passed. The descriptor is the only schema: a new field in
job.proto needs nothing here.
"""

from __future__ import annotations

import difflib
import re
from typing import Any

import yaml
from google.protobuf import json_format
from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor

from .v1.job_pb2 import JobSpec

_RANGES = {
    FieldDescriptor.CPPTYPE_INT32: (-(2**31), 2**31 - 1),
    FieldDescriptor.CPPTYPE_UINT32: (0, 2**32 - 1),
}
_SIZE = re.compile(r"^\s*(\d+(?:\.\d+)?)\s*([kmgt]?)i?b?\s*$", re.IGNORECASE)
_BYTES = {"": 1.0, "k": 2.0**10, "m": 2.0**20, "g": 2.0**30, "t": 2.0**40}
_COUNTED = {"_mib": ("MiB", 2.0**20), "_kib": ("KiB", 2.0**10)}  # how fields of sizes end, and what they count

# What people write when they come from other systems, and what the field is called here.
_MEANT = {
    "args": "command", "cmd": "command", "entrypoint": "command", "run": "command", "script": "command",
    "container": "image", "cpu": "cpus", "vcpus": "cpus", "environment": "env", "gpu": "gpus",
    "mem": "memory_mib", "memory": "memory_mib", "ram": "memory_mib", "retries": "restart", "disks": "volumes",
    "tags": "labels", "size": "size_mib", "mount": "path", "hugepages": "hugepage_size_kib",
    "hugepage_size": "hugepage_size_kib", "net": "network", "cloud_init": "user_data", "cloud-init": "user_data",
    "userdata": "user_data", "iommu": "guest_iommu", "vendor_id": "hypervisor_vendor_id", "type": "kind",
    "interface": "source", "bridge": "source", "constraints": "placement", "affinity": "near", "anti_affinity": "apart",
    "node_selector": "hosts", "nodeselector": "hosts", "exclusive": "whole_host", "locality": "within",
}  # fmt: skip


class Checker:
    """Checks one job at a time; `violations` collects "line L: path: what is wrong; the way out"."""

    def __init__(self, loader: yaml.SafeLoader) -> None:
        self.violations: list[str] = []
        self._loader = loader

    def job(self, node: yaml.Node) -> JobSpec:
        """The spec that `node` describes; meaningless if this added violations."""
        known = len(self.violations)
        document = self._message(node, JobSpec.DESCRIPTOR, "")
        spec = JobSpec()
        if len(self.violations) == known:
            try:
                json_format.ParseDict(document, spec)
            except json_format.ParseError as error:  # e.g. text that is no valid Unicode
                self._fault(node, "", str(error))
        return spec

    def _fault(self, node: yaml.Node, path: str, text: str) -> None:
        where = f"line {node.start_mark.line + 1}: "
        self.violations.append(where + (f"{path}: {text}" if path else text))

    def _message(self, node: yaml.Node, descriptor: Descriptor, path: str) -> dict[str, Any]:
        if not isinstance(node, yaml.MappingNode):
            self._fault(node, path, _not_a_message(node, descriptor))
            return {}
        fields = {name: field for field in descriptor.fields for name in (field.name, field.json_name)}
        found: dict[str, Any] = {}
        for key, key_node, value in self._items(node, path):
            where = f"{path}.{key}" if path else key
            if key not in fields:
                self._fault(key_node, where, _unknown(key, value, descriptor))
            elif fields[key].name in found:
                self._fault(key_node, where, f"stands here as {fields[key].name} too; keep one")
            elif not _is_null(value):  # `env:` with nothing after it is the default
                found[fields[key].name] = self._field(value, fields[key], where)
        return found

    def _items(self, node: yaml.MappingNode, path: str) -> list[tuple[str, yaml.Node, yaml.Node]]:
        """Keys with their nodes; a key that is no text or stands twice is a fault."""
        items: dict[str, tuple[yaml.Node, yaml.Node]] = {}
        for key, value in node.value:
            if key.tag == "tag:yaml.org,2002:merge":
                self._fault(key, path, "merge keys (<<) are not read; write the fields out")
            elif not isinstance(key, yaml.ScalarNode):
                self._fault(key, path, f"a key must be text, not {_shape(key)}")
            elif (name := _joined(key.value)) in items:
                first = items[name][0].start_mark.line + 1
                self._fault(key, path, f"{name!r} stands here twice, first in line {first}; keep one")
            else:
                items[name] = (key, value)
        return [(key, *nodes) for key, nodes in items.items()]

    def _field(self, node: yaml.Node, field: FieldDescriptor, path: str) -> Any:
        message = field.message_type
        if message is not None and message.GetOptions().map_entry:
            return self._map(node, field, path)
        if not field.is_repeated:
            return self._single(node, field, path)
        if not isinstance(node, yaml.SequenceNode):
            self._fault(node, path, _not_a_list(node, field))
            return []
        return [self._single(item, field, f"{path}[{index}]") for index, item in enumerate(node.value)]

    def _map(self, node: yaml.Node, field: FieldDescriptor, path: str) -> dict[str, Any]:
        if not isinstance(node, yaml.MappingNode):
            self._fault(node, path, f"must be a mapping such as `{{KEY: value}}`, not {_shape(node)}")
            return {}
        assert field.message_type is not None
        value_field = field.message_type.fields_by_name["value"]
        return {key: self._single(value, value_field, f"{path}.{key}") for key, _, value in self._items(node, path)}

    def _single(self, node: yaml.Node, field: FieldDescriptor, path: str) -> Any:
        if field.message_type is not None:
            return self._message(node, field.message_type, path)
        value = self._value(node)
        if field.enum_type is not None:
            return self._enum(node, value, field.enum_type, path)
        fault = _scalar_fault(node, value, field)
        if fault:
            self._fault(node, path, fault)
        return value

    def _value(self, node: yaml.Node) -> Any:
        """The scalar's value; None for what no field takes, such as a date, which YAML may not even know to build."""
        plain = isinstance(node, yaml.ScalarNode) and node.tag.rpartition(":")[2] in {"str", "int", "float", "bool"}
        try:
            value = self._loader.construct_object(node) if plain else None
        except ValueError:  # e.g. `!!int x`
            return None
        return _joined(value) if isinstance(value, str) else value

    def _enum(self, node: yaml.Node, value: Any, enum: EnumDescriptor, path: str) -> str:
        """Enum values may be written short: `required` for NUMA_POLICY_REQUIRED."""
        prefix = re.sub(r"(?<!^)(?=[A-Z])", "_", enum.name).upper() + "_"
        shorts = {name.removeprefix(prefix).lower(): name for name in enum.values_by_name}
        text = value if isinstance(value, str) else ""
        name = text if text in enum.values_by_name else shorts.get(text.lower())
        if name is None:
            options = ", ".join(short for short in shorts if short != "unspecified")
            self._fault(node, path, f"{_shape(node)} is none of {options}")
        return name or ""


def _joined(text: str) -> str:
    """JSON writes characters beyond 16 bits as two escapes, which YAML reads as two characters: join them."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _is_null(node: yaml.Node) -> bool:
    return bool(node.tag == "tag:yaml.org,2002:null")


def _shape(node: yaml.Node) -> str:
    """How to name a value in a message: short, and never its whole content."""
    if isinstance(node, yaml.ScalarNode):
        return repr(node.value if len(node.value) <= 40 else node.value[:37] + "...")
    return "a list" if isinstance(node, yaml.SequenceNode) else "a mapping"


def _scalar_fault(node: yaml.Node, value: Any, field: FieldDescriptor) -> str:
    """What is wrong with a scalar, or ""."""
    if field.cpp_type == FieldDescriptor.CPPTYPE_STRING:
        if isinstance(value, str):
            return ""
        quoted = f'; quote it: "{node.value}"' if isinstance(node, yaml.ScalarNode) else ""
        return f"must be text, not {_shape(node)}{quoted}"
    if field.cpp_type == FieldDescriptor.CPPTYPE_BOOL:
        return "" if isinstance(value, bool) else f"must be true or false, not {_shape(node)}"
    whole = isinstance(value, int) or (isinstance(value, float) and value.is_integer())
    if isinstance(value, bool) or not whole:
        return f"must be a whole number, not {_shape(node)}{_number_hint(node, field)}"
    low, high = _RANGES[field.cpp_type]
    return "" if low <= value <= high else f"{_shape(node)} is not between {low} and {high}"


def _number_hint(node: yaml.Node, field: FieldDescriptor) -> str:
    if found := _size(node, field.name):
        return f"; it counts {found[1]}: write {found[0]}"
    if isinstance(node, yaml.ScalarNode) and re.fullmatch(r"-?\d+", node.value):
        return "; leave the quotes away"
    return ""


def _size(node: yaml.Node, field: str) -> tuple[int, str] | None:
    """What a size such as "8GiB" is in the unit of `field`, and that unit's name; None if one of them is no size."""
    unit, size = _COUNTED.get(field[-4:], ("", 0.0))
    match = _SIZE.match(node.value) if isinstance(node, yaml.ScalarNode) and unit else None
    count = round(float(match[1]) * _BYTES[match[2].lower()] / size) if match is not None else 0
    return (count, unit) if count else None


def _unknown(key: str, value: yaml.Node, descriptor: Descriptor) -> str:
    names = [field.name for field in descriptor.fields]
    meant = _MEANT.get(key.lower())
    if meant not in names:
        meant = next(iter(difflib.get_close_matches(key.lower(), names, n=1)), None)
    if meant is None:
        return f"unknown field; known here: {', '.join(names)}"
    if found := _size(value, meant):
        return f"unknown field; write `{meant}: {found[0]}` ({found[1]})"
    if meant == "gpus" and isinstance(value, yaml.ScalarNode):
        return f"unknown field; {_gpus_hint(value)}"
    return f'unknown field; did you mean "{meant}"?'


def _not_a_message(node: yaml.Node, descriptor: Descriptor) -> str:
    if descriptor.name == "GpuRequest":
        return f"must be a mapping, not {_shape(node)}; {_gpus_hint(node)}"
    if descriptor.name == "Network" and isinstance(node, yaml.ScalarNode):
        kind, _, source = node.value.partition(":")
        rest = f", source: {source}" if source else ""
        return f"must be a mapping, not {_shape(node)}; write `network: {{kind: {kind or 'user'}{rest}}}`"
    names = ", ".join(field.name for field in descriptor.fields)
    return f"must be a mapping with some of {names}, not {_shape(node)}"


def _gpus_hint(node: yaml.Node) -> str:
    count = node.value if isinstance(node, yaml.ScalarNode) and node.value.isdigit() else "1"
    return f"write `gpus: {{count: {count}}}`"


def _not_a_list(node: yaml.Node, field: FieldDescriptor) -> str:
    way_out = '; write the program and its arguments as a list: ["sh", "-c", "..."]' if field.name == "command" else ""
    return f"must be a list, not {_shape(node)}{way_out}"
