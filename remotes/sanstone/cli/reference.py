# SPDX-License-Identifier: Apache-2.0
"""What the tables say, in words: for a terminal and as JSON."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator

from sanstone.settings import COMMON, DRIVERS, Attribute, Scope, Table, table
from sanstone.settings.kinds import Duration, format_seconds

__all__ = ["as_json", "default_of", "groups", "meaning", "tables", "terminal", "where"]


def tables(driver: str | None) -> list[Table]:
    """List the tables that matter for a driver, or all of them."""
    return [table(name) for name in ((driver,) if driver else DRIVERS)] + (
        [] if driver == COMMON else [table(COMMON)]
    )


def groups(attributes: tuple[Attribute, ...]) -> Iterator[tuple[str, list[Attribute]]]:
    """Put attributes under their headings, in the order of the table."""
    found: dict[str, list[Attribute]] = {}
    for each in attributes:
        found.setdefault(each.group, []).append(each)
    yield from found.items()


def where(attribute: Attribute, driver: str) -> str:
    """Say where an attribute may stand."""
    in_file = {scope for scope in attribute.scopes if scope.is_file}
    only = {
        frozenset({Scope.SANSTONE}): "[sanstone]",
        frozenset({Scope.HOSTS}): "[hosts]",
        frozenset({Scope.DRIVER}): f"[{driver}]",
    }
    places = [f"file {only[frozenset(in_file)]}" if frozenset(in_file) in only else "file"]
    places += [scope.name.lower() for scope in attribute.scopes if not scope.is_file]
    return ", ".join(places)


def default_of(attribute: Attribute) -> str:
    """Say what holds when nothing is set, with its unit."""
    if attribute.is_mandatory:
        return "mandatory"
    if attribute.default is None:
        return attribute.note or "none"
    if isinstance(attribute.kind, Duration):
        seconds = attribute.kind.parse(attribute.default)
        return format_seconds(seconds)
    return f"{attribute.default} {attribute.unit}".strip()


def terminal(driver: str | None, columns: int) -> str:
    """Set the reference in three columns; ``columns`` is taken between 60 and 120."""
    columns = min(max(columns, 60), 120)
    shown = tables(driver)
    first = max(len(each.name) for part in shown for each in part.attributes)
    second = (columns - first - 4) * 2 // 5
    third = columns - first - second - 4
    lines: list[str] = []
    for part in shown:
        title = part.title if part.driver == COMMON else f"{part.driver}: {part.title}"
        lines += [title, "=" * len(title), ""]
        for heading, attributes in groups(part.attributes):
            lines += [heading, ""]
            for each in attributes:
                lines += _row(each, part.driver, (first, second, third))
            lines.append("")
    lines += _wrapped(
        "file is sanstone.conf: section [sanstone], a driver's section, or one for a single system, in this "
        "order; then the datastore and, where it says so, the image have the last word.",
        columns,
    )
    return "\n".join(lines) + "\n"


def _row(attribute: Attribute, driver: str, widths: tuple[int, int, int]) -> list[str]:
    first, second, third = widths
    default = default_of(attribute)
    about = "mandatory" if attribute.is_mandatory else f"default: {default}"
    left = [attribute.name]
    middle = [
        *_wrapped(attribute.kind.allowed, second),
        *_wrapped(about, second),
        *_wrapped(where(attribute, driver), second),
    ]
    right = _wrapped(meaning(attribute), third)
    rows = []
    for index in range(max(len(middle), len(right))):
        cells = [column[index] if index < len(column) else "" for column in (left, middle, right)]
        rows.append(f"{cells[0]:{first}}  {cells[1]:{second}}  {cells[2]}".rstrip())
    return rows


def meaning(attribute: Attribute, mark: str = "") -> str:
    """Say all that there is to say besides what is allowed, with ``mark`` around what one types."""
    parts = [attribute.help]
    if attribute.default is not None and attribute.note:
        parts.append(f"Default: {attribute.note}.")
    if attribute.shown_when:
        name, value = attribute.shown_when
        parts.append(f"Only with {mark}{name}={value}{mark}.")
    if attribute.option:
        parts.append(f"({mark}{attribute.option}{mark})")
    return " ".join(parts)


def _wrapped(text: str, width: int) -> list[str]:
    return textwrap.wrap(text, width, break_on_hyphens=False) or [""]


def as_json(driver: str | None) -> str:
    """Write everything that a form or another program needs."""
    import json

    return json.dumps([_table_as_json(each) for each in tables(driver)], indent=2) + "\n"


def _table_as_json(part: Table) -> dict[str, object]:
    return {
        "driver": part.driver,
        "title": part.title,
        "attributes": [_attribute_as_json(each) for each in part.attributes],
    }


def _attribute_as_json(attribute: Attribute) -> dict[str, object]:
    shown_when = attribute.shown_when
    return {
        "name": attribute.name,
        "group": attribute.group,
        "kind": attribute.kind.label,
        "allowed": attribute.kind.allowed,
        "unit": attribute.unit,
        "default": attribute.default,
        "note": attribute.note,
        "scopes": [scope.name.lower() for scope in attribute.scopes],
        "is_mandatory": attribute.is_mandatory,
        "is_secret": attribute.is_secret,
        "shown_when": {"name": shown_when[0], "value": shown_when[1]} if shown_when else None,
        "stands_for": attribute.stands_for.attribute if attribute.stands_for else None,
        "option": attribute.option,
        "help": attribute.help,
        **attribute.kind.limits(),
    }
