"""Access Control Services in a bridge's config space: whether it keeps what is behind it apart. Pure over bytes.

Layout: PCI Express Base Specification, 7.5.3 (capability), 7.7.11 (ACS). Judged as Linux does when it forms IOMMU
groups (drivers/iommu/iommu.c REQ_ACS_FLAGS; drivers/pci/pci.c pci_acs_flags_enabled), without its list of quirks, by
which some bridges without the capability count as isolating. So this only explains a group, it never predicts one.
"""

from __future__ import annotations

CONFIG_BYTES, HEADER_BYTES, BASIC_BYTES = 4096, 64, 256
STATUS, CAPABILITIES_LIST, CAPABILITY_POINTER = 0x06, 0x10, 0x34
NO_VENDORS = (0, 0xFFFF)  # what is read of a function that is dead or gone; no vendor has these ids
EXPRESS = 0x10
ACS = 0x000D
ROOT_PORT, UPSTREAM_PORT, DOWNSTREAM_PORT, EXPRESS_TO_PCI, PCI_TO_EXPRESS = 4, 5, 6, 7, 8
# Source Validation, P2P Request Redirect, P2P Completion Redirect, Upstream Forwarding.
REQUIRED = 0x01 | 0x04 | 0x08 | 0x10


def why_shared(config: bytes | None) -> str:
    """Why this bridge does not separate what is behind it, in a few words; "" if it does, or is not asked to."""
    if config is None or len(config) < HEADER_BYTES:
        return "config space cannot be read"
    if _word(config, 0) in NO_VENDORS:
        return "it does not answer: nothing is known of what it separates"
    express = _express_offset(config)
    if express is None:
        return "conventional PCI: all behind it share its requester id" if len(config) >= BASIC_BYTES else _ROOT_ONLY
    kind = _word(config, express + 2) >> 4 & 0xF
    if kind in (EXPRESS_TO_PCI, PCI_TO_EXPRESS):
        return "a bridge to conventional PCI: all behind it share its requester id"
    if kind not in (ROOT_PORT, DOWNSTREAM_PORT):
        return ""
    if len(config) < CONFIG_BYTES:
        return _ROOT_ONLY
    acs = _extended(config, ACS)
    if acs is None:
        return "no ACS capability"
    wanted = _word(config, acs + 4) & REQUIRED
    if _word(config, acs + 6) & wanted != wanted:
        return "its ACS is switched off"
    return ""


_ROOT_ONLY = "only the first bytes of its config space can be read (be root)"


def _word(config: bytes, offset: int) -> int:
    return int.from_bytes(config[offset : offset + 2], "little")


def _express_offset(config: bytes) -> int | None:
    """Where the PCI Express capability begins; None if the list does not lead to one. A looping list ends too."""
    if not _word(config, STATUS) & CAPABILITIES_LIST:
        return None
    offset = config[CAPABILITY_POINTER] & 0xFC
    for _ in range(BASIC_BYTES // 4):
        if not HEADER_BYTES <= offset <= len(config) - 4 or offset >= BASIC_BYTES:
            return None
        if config[offset] == EXPRESS:
            return offset
        offset = config[offset + 1] & 0xFC
    return None


def _extended(config: bytes, wanted: int) -> int | None:
    """Where an extended capability begins; None if the list does not lead to one."""
    offset = BASIC_BYTES
    for _ in range(CONFIG_BYTES // 8):
        header = int.from_bytes(config[offset : offset + 4], "little")
        if header in (0, 0xFFFFFFFF):
            return None
        if header & 0xFFFF == wanted and offset + 8 <= len(config):
            return offset
        offset = header >> 20 & 0xFFC
        if offset < BASIC_BYTES:
            return None
    return None
