"""The file that says what switches each host off: read and judged as a whole, before anything relies on it.

It refuses what it does not understand: a misspelt key would otherwise be found when a host is dead. It holds no secret
and takes none; a password stands in a file or in the environment.
"""

from __future__ import annotations

import os
import re
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yaml

from gpupool.store.keys import check_name

from .agents import FenceProgram
from .port import FenceError
from .programs import Program, UnfitError, describe
from .redfish import Redfish
from .secret import Secret

REDFISH = "redfish"
TYPES: dict[str, tuple[tuple[type, ...], str]] = {
    "device": ((str,), "`redfish`, fence_NAME or /path/to/fence_NAME"),
    "parameters": ((dict,), "names with values, as `man fence_NAME` has them"),
    "address": ((str,), "such as https://10.0.0.7"),
    "system": ((str,), "such as /redfish/v1/Systems/1"),
    "username": ((str,), "a name"),
    "verify": ((bool, str), "true, false, or a file of certificates"),
    "password_file": ((str,), "a path"),
    "password_env": ((str,), "the name of an environment variable"),
    "limit_s": ((int, float), "seconds, 1 to 600"),
    "power_on": ((bool,), "true or false"),
    "machine": ((str,), "16 hexadecimal digits in quotes, as `gpupool hosts NAME` shows"),
}
_MACHINE = re.compile(r"[0-9a-f]{16}")
ONLY_REDFISH = ("address", "system", "username", "verify")
PASSWORDS = ("password_file", "password_env")
LOOPBACK = ("127.0.0.1", "::1", "localhost")
DEFAULT_LIMIT_S = 60.0
_SECRET = re.compile(r"passw|secret|token|community", re.IGNORECASE)
_TALKATIVE = ("verbose", "verbose_level", "debug", "debug_file")  # what they print may hold the secret

Settings = dict[str, Any]
Configured = FenceProgram | Redfish


class PowerFileError(Exception):
    """The file is refused; `violations` has every fault, each with its place, the value and the way out."""

    def __init__(self, path: Path, violations: list[str]) -> None:
        super().__init__("; ".join(violations))
        self.violations = [f"{path}: {violation}" for violation in violations]


def load_power(path: Path) -> dict[str, Configured]:
    """The device of each host that the file names. Raises PowerFileError."""
    try:
        data = yaml.load(path.read_text(), Loader=_Strict)  # noqa: S506 - a SafeLoader that refuses double keys
    except OSError as exc:
        raise PowerFileError(path, [f"cannot be read ({exc.strerror}); see --power"]) from None
    except UnicodeDecodeError:
        raise PowerFileError(path, ["is not text; YAML is wanted"]) from None
    except (yaml.YAMLError, RecursionError) as exc:
        raise PowerFileError(path, [" ".join(str(exc).split())]) from None
    except ValueError as exc:  # what looks like a date and is none
        raise PowerFileError(path, [f"a value cannot be read ({exc}); text belongs in quotes"]) from None
    reader = _Reader(path.resolve().parent)
    devices = reader.devices(data)
    if reader.violations:
        raise PowerFileError(path, reader.violations)
    return devices


class _Strict(yaml.SafeLoader):
    """Refuses a key that stands twice, where YAML would silently take the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        """As the base class; raises ConstructorError for a double key."""
        seen: set[str] = set()
        for key, _ in node.value:
            if str(key.value) in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"{key.value!r} stands twice; keep one of them", key.start_mark
                )
            seen.add(str(key.value))
        return super().construct_mapping(node, deep)


class _Reader:
    """Gathers faults instead of stopping at the first."""

    def __init__(self, folder: Path) -> None:
        self.violations: list[str] = []
        self._folder = folder
        self._programs: dict[str, Program | None] = {}

    def devices(self, data: Any) -> dict[str, Configured]:
        top = self._mapping(data, "the file", ("defaults", "groups", "hosts"))
        if not top.get("hosts"):
            self.violations.append("`hosts` names none; write e.g. hosts: {gpu1: {device: redfish, ...}}")
        defaults = self._settings(top.get("defaults", {}), "defaults")
        groups = {
            str(name): self._settings(value, f"groups.{name}")
            for name, value in self._mapping(top.get("groups", {}), "groups").items()
        }
        for layer, settings in ("defaults", defaults), *((f"groups.{name}", each) for name, each in groups.items()):
            if "machine" in settings:
                self.violations.append(f"{layer}: machine is of one host; write it at the host")
        found: dict[str, Configured] = {}
        for name, value in self._mapping(top.get("hosts", {}), "hosts").items():
            device = self._host(str(name), value, defaults, groups)
            if device is not None:
                found[str(name)] = device
        by_machine: dict[str, str] = {}
        for name, device in found.items():
            if device.machine and (other := by_machine.setdefault(device.machine, name)) != name:
                self.violations.append(f"hosts.{name}: machine {device.machine} is that of {other}, too")
        return found

    def _host(self, name: str, value: Any, defaults: Settings, groups: Mapping[str, Settings]) -> Configured | None:
        where = f"hosts.{name}"
        try:
            check_name(name, "host")
        except ValueError as exc:
            self.violations.append(f"{where}: {exc}")
            return None
        own = dict(value) if isinstance(value, dict) else value
        group = own.pop("group", None) if isinstance(own, dict) else None
        if group is not None and group not in groups:
            known = ", ".join(sorted(groups)) or "none"
            self.violations.append(f"{where}: there is no group {group!r}; known are: {known}")
            return None
        merged = _merge(defaults, groups[group] if group is not None else {}, self._settings(own, where))
        return self._device(name, where, merged)

    def _device(self, name: str, where: str, given: Settings) -> Configured | None:
        kind = given.get("device")
        if kind is None:
            self.violations.append(f"{where}: what switches it off is missing; add device: redfish, or fence_NAME")
            return None
        secret = self._secret(where, {key: _named(given[key], name) for key in PASSWORDS if key in given})
        if kind == REDFISH:
            return self._redfish(name, where, given, secret)
        if wrong := [key for key in ONLY_REDFISH if key in given]:
            self.violations.append(f"{where}: {wrong[0]} goes with redfish; for {kind} it is one of `parameters`")
            return None
        return self._program(name, where, given, secret)

    def _redfish(self, name: str, where: str, given: Settings, secret: Secret) -> Configured | None:
        before = len(self.violations)
        address = _named(given.get("address", ""), name)
        url = urlsplit(address)
        if url.scheme not in ("https", "http") or not url.hostname or url.username or url.password:
            self.violations.append(f"{where}: address {address!r} is no URL such as https://10.0.0.7, without a user")
        elif url.scheme == "http" and url.hostname not in LOOPBACK:
            self.violations.append(
                f"{where}: address {address!r} would carry the password in clear; use https, with verify: false if the "
                "BMC's certificate is its own"
            )
        if "parameters" in given:
            self.violations.append(f"{where}: parameters go with a fence agent; redfish has {', '.join(ONLY_REDFISH)}")
        if not given.get("username") or not (secret.file or secret.env):
            self.violations.append(f"{where}: username, or password_file or password_env, is missing")
        verify = given.get("verify", True)
        if isinstance(verify, str) and not (self._folder / verify).exists():
            self.violations.append(f"{where}: verify: there is no file {verify!r}; name the BMCs' CA, or say true")
        if len(self.violations) > before:
            return None
        return Redfish(
            address=address,
            username=given["username"],
            secret=secret,
            system=given.get("system", ""),
            verify=str(self._folder / verify) if isinstance(verify, str) else verify,
            limit_s=float(given.get("limit_s", DEFAULT_LIMIT_S)),
            power_on=given.get("power_on", False),
            machine=given.get("machine", ""),
        )

    def _program(self, name: str, where: str, given: Settings, secret: Secret) -> Configured | None:
        program = self._described(where, given["device"])
        if program is None:
            return None
        parameters: dict[str, str] = {}
        for key, value in given.get("parameters", {}).items():
            parameters[str(key)] = self._parameter(f"{where}: parameter {key}", str(key), value, program, name)
        if (secret.file or secret.env) and not program.password_name:
            self.violations.append(f"{where}: {program.name} takes no password; leave {secret} out")
        return FenceProgram(
            kind=program.name,
            program=program.path,
            parameters=parameters,
            secret=secret,
            password_name=program.password_name,
            limit_s=float(given.get("limit_s", DEFAULT_LIMIT_S)),
            power_on=given.get("power_on", False),
            machine=given.get("machine", ""),
        )

    def _parameter(self, where: str, key: str, value: Any, program: Program, host: str) -> str:
        """As the program shall read it; faults are noted."""
        if key not in program.parameters:
            self.violations.append(f"{where}: {program.name} has no such parameter; see man {program.name}")
        elif key in _TALKATIVE:
            self.violations.append(f"{where}: it would have passwords printed; leave it out")
        elif _SECRET.search(key) and not key.endswith(("_script", "_file")):
            self.violations.append(f"{where}: no secret may stand here; use password_file or password_env")
        if isinstance(value, bool):
            return "1" if value else "0"
        if not isinstance(value, (str, int, float)) or "\n" in str(value):
            self.violations.append(f"{where}: {value!r} is no text, number or yes/no on one line")
        return _named(str(value), host)

    def _described(self, where: str, agent: str) -> Program | None:
        if agent not in self._programs:
            try:
                self._programs[agent] = describe(agent)
            except UnfitError as exc:
                self._programs[agent] = None
                self.violations.append(f"{where}: {exc}")
        return self._programs[agent]

    def _secret(self, where: str, given: Settings) -> Secret:
        """Where the password is; it must be there now, too."""
        if len(given) > 1:
            self.violations.append(f"{where}: password_file and password_env are both given; keep one")
        file = given.get("password_file")
        path = self._folder / os.path.expandvars(file) if file is not None else None
        secret = Secret(path, given.get("password_env", ""))
        try:
            secret.read()
        except FenceError as exc:
            self.violations.append(f"{where}: {exc}")
        return secret

    def _settings(self, value: Any, where: str) -> Settings:
        """One layer's settings, each of its type."""
        kept = {}
        for key, given in self._mapping(value, where, tuple(TYPES)).items():
            types, wanted = TYPES[key]
            right = isinstance(given, types) and (bool in types or not isinstance(given, bool))
            if key == "limit_s" and right:
                right = 1 <= given <= 600
            if key == "machine" and right:
                right = _MACHINE.fullmatch(given) is not None
            if right:
                kept[key] = given
            else:
                self.violations.append(f"{where}: {key} is {given!r}; wanted is {wanted}")
        return kept

    def _mapping(self, value: Any, where: str, known: tuple[str, ...] | None = None) -> Settings:
        if not isinstance(value, dict):
            self.violations.append(f"{where}: names with values are wanted, not {value!r}")
            return {}
        if known is None:
            return value
        for key in value:
            if key not in known:
                what = "no secret may stand here; use password_file" if key in ("password", "passwd") else "unknown"
                self.violations.append(f"{where}: {key!r}: {what}; known are: {', '.join(known)}")
        return {key: given for key, given in value.items() if key in known}


def _merge(*layers: Settings) -> Settings:
    """Later layers win; parameters one by one; a password of a later layer replaces any of an earlier one."""
    merged: Settings = {}
    for layer in layers:
        if any(key in layer for key in PASSWORDS):
            merged = {key: value for key, value in merged.items() if key not in PASSWORDS}
        parameters = {**merged.get("parameters", {}), **layer.get("parameters", {})}
        merged = {**merged, **layer}
        if parameters:
            merged["parameters"] = parameters
    return merged


def _named(text: str, host: str) -> str:
    return text.replace("{host}", host)
