"""One helper for building XML."""

from __future__ import annotations

from xml.etree import ElementTree as ET


def add(parent: ET.Element, tag: str, text: str | None = None, **attributes: str) -> ET.Element:
    """A new child of `parent` with that text."""
    element = ET.SubElement(parent, tag, attributes)
    element.text = text
    return element
