# SPDX-License-Identifier: Apache-2.0
"""lvs and vgs: fields, forms and selection."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Mapping, Sequence

from lab.target.options import Arguments, Syntax, spell_size
from lab.target.volumes import EXTENT, METADATA, LogicalVolume, LVMError, VolumeGroup, Volumes, new_uuid

__all__ = ["lvs", "named", "selected", "vgs"]

Cell = str | int
Row = Mapping[str, Cell | Callable[[], Cell]]

_FORMS = {
    "flags": {
        "all": "a", "noheadings": "", "nosuffix": "", "nameprefixes": "", "unquoted": "", "unbuffered": "",
        "binary": "", "aligned": "", "readonly": "", "partial": "P", "foreign": "", "shared": "",
    },
    "values": {
        "options": "o", "sort": "O", "units": "", "separator": "", "select": "S", "reportformat": "",
        "logonly": "",
    },
}  # fmt: skip
LVS = Syntax("lvs", **_FORMS)
VGS = Syntax("vgs", **_FORMS)

_LVS_DEFAULT = (
    "lv_name,vg_name,lv_attr,lv_size,pool_lv,origin,data_percent,metadata_percent,"
    "move_pv,mirror_log,copy_percent,convert_lv"
)
_VGS_DEFAULT = "vg_name,pv_count,lv_count,snap_count,vg_attr,vg_size,vg_free"
_HEADINGS = {
    "lv_name": "LV", "vg_name": "VG", "lv_attr": "Attr", "lv_size": "LSize", "pool_lv": "Pool",
    "origin": "Origin", "data_percent": "Data%", "metadata_percent": "Meta%", "lv_tags": "LV Tags",
    "lv_uuid": "LV UUID", "lv_path": "Path", "vg_size": "VSize", "vg_free": "VFree", "pv_count": "#PV",
    "lv_count": "#LV", "snap_count": "#SN", "vg_attr": "Attr", "move_pv": "Move", "mirror_log": "Log",
    "copy_percent": "Cpy%Sync", "convert_lv": "Convert", "vg_uuid": "VG UUID", "lv_active": "Active",
    "lv_device_open": "DevOpen", "lv_full_name": "LV", "lv_time": "CTime", "vg_extent_size": "Ext",
    "segtype": "Type", "thin_id": "ThId", "vg_tags": "VG Tags",
}  # fmt: skip
_LEAST_WIDTHS = {"lv_name": 4, "lv_path": 4, "lv_device_open": 10, "lv_when_full": 15}
_RIGHT = frozenset(
    (
        "lv_size", "lv_metadata_size", "chunk_size", "origin_size", "vg_size", "vg_free", "vg_extent_size",
        "lv_device_open", "pv_count", "lv_count", "snap_count", "thin_id", "transaction_id",
    )
)  # fmt: skip


def lvs(volumes: Volumes, argv: Sequence[str]) -> str:
    """List logical volumes; words name groups, volumes or ``@tag``."""
    args = LVS.parse(argv)
    wanted, errors = named(volumes, args.words) if args.words else (list(volumes.all()), [])
    rows: list[Row] = [
        _lv_row(volumes, group, each)
        for group, each in wanted
        if not any(other.merges == each.name for other in group.volumes.values())
    ]
    if "all" in args:
        rows += [
            row for group in {one.name: one for one, _ in wanted}.values() for row in _hidden(volumes, group)
        ]
    known = _lv_row(volumes, _NO_GROUP, LogicalVolume("", "", EXTENT, "linear"))
    shown = _show(rows, known, args, "lv", _LVS_DEFAULT)
    if errors:
        shown = shown if wanted else ""
        raise LVMError(*(line for err in errors for line in err.lines), code=errors[0].code, out=shown)
    return shown


def vgs(volumes: Volumes, argv: Sequence[str]) -> str:
    """List volume groups."""
    args = VGS.parse(argv)
    groups, errors = [], []
    for word in args.words or volumes.groups:
        try:
            groups.append(volumes.group(word))
        except LVMError as err:
            errors.append(err)
    if args.words and not groups:
        raise errors[0]
    shown = _show([_vg_row(group) for group in groups], _vg_row(_NO_GROUP), args, "vg", _VGS_DEFAULT)
    if errors:
        raise LVMError(*(line for err in errors for line in err.lines), code=errors[0].code, out=shown)
    return shown


def selected(
    volumes: Volumes, args: Arguments
) -> tuple[list[tuple[VolumeGroup, LogicalVolume]], list[LVMError]]:
    """Find the volumes that a changing command is about: its words, of which ``--select`` takes some."""
    found, errors = named(volumes, args.words) if args.words else (list(volumes.all()), [])
    for option in args.all("select"):
        found = [(group, one) for group, one in found if _matches(option, _lv_row(volumes, group, one), "lv")]
    return found, errors


def named(
    volumes: Volumes, words: Sequence[str]
) -> tuple[list[tuple[VolumeGroup, LogicalVolume]], list[LVMError]]:
    """Find volumes, in the order in which the groups have them, and what is said of words that name none."""
    found: set[str] = set()
    errors = []
    for word in words:
        try:
            found |= {one.uuid for one in _named(volumes, word)}
        except LVMError as err:
            errors.append(err)
    return [(group, one) for group, one in volumes.all() if one.uuid in found], errors


def _named(volumes: Volumes, word: str) -> list[LogicalVolume]:
    if word.startswith("@"):
        return [one for _, one in volumes.all() if word[1:] in one.tags]
    name, one = volumes.split(word)
    if one:
        return [volumes.find(word)[1]]
    return list(volumes.group(name).volumes.values())


def _hidden(volumes: Volumes, group: VolumeGroup) -> Sequence[Row]:
    """Make rows of what belongs to thin pools and is not for use."""
    parts = [("[lvol0_pmspare]", METADATA, "ewi-------")] if group.pools() else []
    for pool in group.pools():
        parts += [
            (f"[{pool.name}_tdata]", pool.size, "Twi-ao----"),
            (f"[{pool.name}_tmeta]", METADATA, "ewi-ao----"),
        ]
    return [
        {
            **_lv_row(volumes, group, LogicalVolume(name, new_uuid(), size, "linear")),
            "lv_attr": attributes,
            "lv_path": "",
        }
        for name, size, attributes in parts
    ]


def _lv_row(volumes: Volumes, group: VolumeGroup, volume: LogicalVolume) -> Row:
    is_pool = volume.kind == "pool"
    is_thin = is_pool or volume.is_thin
    has_percent = is_pool or (volume.is_thin and volume.is_active)

    def used() -> str:
        if not has_percent:
            return ""
        bytes_used = volumes.pool_used(group, volume) if is_pool else volumes.used(volume)
        return f"{100 * bytes_used / volume.size:.2f}"

    def metadata() -> str:
        return f"{min(100.0, 10.0 + 0.1 * len(group.thin_in(volume.name))):.2f}" if is_pool else ""

    def is_open() -> bool:
        return (
            any(each.is_active for each in group.thin_in(volume.name)) if is_pool else volumes.is_open(volume)
        )

    def role() -> str:
        if is_pool:
            return "private"
        origins = {each.origin for each in group.volumes.values()}
        parts = ["public"]
        if volume.name in origins:
            parts += ["origin", "thinorigin"]
        if volume.origin:
            parts += ["snapshot", "thinsnapshot"]
        return ",".join(parts)

    return {
        **_vg_row(group),
        "lv_name": volume.name,
        "lv_full_name": f"{group.name}/{volume.name}",
        "lv_uuid": volume.uuid,
        "lv_size": Bytes(volume.size),
        "lv_path": "" if is_pool else str(volumes.device(group, volume)),
        "lv_dm_path": str(volumes.mapped(group, volume)),
        "lv_tags": ",".join(sorted(volume.tags)),
        "lv_attr": lambda: _attributes(volume, is_open()),
        "lv_active": "active" if volume.is_active else "",
        "lv_active_locally": "active locally" if volume.is_active else "",
        "lv_device_open": lambda: ("open" if is_open() else "") if volume.is_active else "unknown",
        "lv_permissions": "read-only-override" if is_pool else _permissions(volume),
        "lv_skip_activation": "skip activation" if volume.skips_activation else "",
        "lv_time": time.strftime("%Y-%m-%d %H:%M:%S +0000", time.gmtime(volume.created)),
        "lv_layout": {"pool": "thin,pool", "thin": "thin,sparse", "linear": "linear"}[volume.kind],
        "lv_role": role,
        "lv_merging": "",
        "lv_health_status": "",
        "lv_when_full": "queue" if is_pool else "",
        "segtype": {"pool": "thin-pool"}.get(volume.kind, volume.kind),
        "pool_lv": volume.pool,
        "origin": volume.origin,
        "origin_uuid": group.volumes[volume.origin].uuid if volume.origin in group.volumes else "",
        "origin_size": Bytes(group.volumes[volume.origin].size) if volume.origin in group.volumes else "",
        "thin_id": str(volume.thin_id) if volume.is_thin else "",
        "data_percent": used,
        "metadata_percent": metadata,
        "chunk_size": Bytes(64 * 1024) if is_pool else Bytes(0),
        "lv_metadata_size": Bytes(METADATA) if is_pool else "",
        "discards": "passdown" if is_thin else "",
        "zero": "zero" if is_thin else "unknown",
        "transaction_id": str(group.next_thin_id - 1) if is_pool else str(max(volume.thin_id - 1, 0)),
        **dict.fromkeys(("move_pv", "mirror_log", "copy_percent", "convert_lv", "lv_parent"), ""),
    }  # fmt: skip


_NO_GROUP = VolumeGroup("", "", EXTENT)


class Bytes(int):
    """A number that a report spells in its units."""


def _permissions(volume: LogicalVolume) -> str:
    return "writeable" if volume.is_writable else "read-only"


def _attributes(volume: LogicalVolume, is_open: bool) -> str:
    kind = {"pool": "t", "thin": "V", "linear": "-"}[volume.kind]
    if volume.merges:
        kind = "O"
    return "".join(
        (
            kind,
            "w" if volume.is_writable else "r",
            "i",
            "-",
            "a" if volume.is_active else "-",
            "o" if is_open else "-",
            "t" if volume.kind in ("pool", "thin") else "-",
            "z" if volume.kind in ("pool", "thin") else "-",
            "-",
            "k" if volume.skips_activation else "-",
        )
    )


def _vg_row(group: VolumeGroup) -> dict[str, Cell | Callable[[], Cell]]:
    visible = len(group.volumes)
    return {
        "vg_name": group.name,
        "vg_uuid": group.uuid,
        "vg_size": Bytes(group.size),
        "vg_free": Bytes(group.free),
        "vg_extent_size": Bytes(EXTENT),
        "vg_extent_count": str(group.size // EXTENT),
        "vg_free_count": str(group.free // EXTENT),
        "vg_attr": "wz--n-",
        "vg_tags": "",
        "pv_count": "1",
        "lv_count": str(visible),
        "snap_count": "0",
    }


def _show(rows: Sequence[Row], known: Row, args: Arguments, kind: str, default: str) -> str:
    fields = _fields(args, known, kind, default)
    for option in args.all("select"):
        rows = [row for row in rows if _matches(option, row, kind)]
    order = [*(_name(word, kind) for word in args.get("sort").split(",") if word), "vg_name", f"{kind}_name"]
    rows = sorted(rows, key=lambda row: [str(_value(row, key)).strip("[") for key in order])
    cells = [[_spell(_value(row, field), args) for field in fields] for row in rows]
    if args.get("reportformat", "basic") == "json":
        return _json(kind, fields, cells)
    if "nameprefixes" in args:
        quote = "" if "unquoted" in args else "'"
        cells = [
            [f"LVM2_{field.upper()}={quote}{cell}{quote}" for field, cell in zip(fields, row, strict=True)]
            for row in cells
        ]
    if "separator" in args:
        lines = [args.get("separator").join(row) for row in cells]
        head = args.get("separator").join(_HEADINGS.get(field, field) for field in fields)
        lines = lines if "noheadings" in args else [head, *lines]
    else:
        lines = _columns(fields, cells, has_head="noheadings" not in args)
    return "".join(f"  {line}\n" for line in lines)


def _fields(args: Arguments, known: Row, kind: str, default: str) -> list[str]:
    fields = default.split(",")
    for index, option in enumerate(args.all("options")):
        if option.startswith("+"):
            fields += option[1:].split(",")
        else:
            fields = option.split(",") if not index else fields + option.split(",")
    names = [_name(field, kind) for field in fields if field]
    for name in names:
        if name not in known:
            raise LVMError(f"Unrecognised field: {name}")
    return names


def _name(field: str, kind: str) -> str:
    field = field.lstrip("+-")
    return (
        f"{kind}_{field}"
        if field in ("name", "uuid", "attr", "size", "path", "tags", "time", "free")
        else field
    )


def _value(row: Row, field: str) -> Cell:
    value = row[field]
    return value() if callable(value) else value


def _spell(value: Cell, args: Arguments) -> str:
    if isinstance(value, str):
        return value
    return spell_size(value, args.get("units", "r"), has_suffix="nosuffix" not in args)


def _json(kind: str, fields: Sequence[str], cells: Sequence[Sequence[str]]) -> str:
    rows = [
        "{" + ", ".join(f"{json.dumps(f)}:{json.dumps(c)}" for f, c in zip(fields, row, strict=True)) + "}"
        for row in cells
    ]
    inner = ",\n".join(f"                  {row}" for row in rows)
    body = f"\n{inner}\n              " if rows else "\n              "
    return (
        '  {\n      "report": [\n          {\n'
        f'              "{kind}": [{body}]\n'
        "          }\n      ]\n  }\n"
    )


def _columns(fields: Sequence[str], cells: Sequence[Sequence[str]], *, has_head: bool) -> list[str]:
    head = [_HEADINGS.get(field, field) for field in fields]
    table = [head, *cells] if has_head else list(cells)
    widths = [
        max([_LEAST_WIDTHS.get(field, 0), *(len(row[at]) for row in table)])
        for at, field in enumerate(fields)
    ]
    return [
        " ".join(
            cell.rjust(width) if field in _RIGHT and row is not head else cell.ljust(width)
            for field, cell, width in zip(fields, row, widths, strict=True)
        )
        for row in table
    ]


_TERM = re.compile(r"\s*([a-z_]+)\s*(=~|!~|!=|=|>=|<=|>|<)\s*(\"[^\"]*\"|'[^']*'|\{[^}]*\}|[^\s&|,]+)\s*")


def _matches(selection: str, row: Row, kind: str) -> bool:
    """Tell whether a row is selected: comparisons joined by ``&&`` (or a comma) and ``||``."""
    return any(
        all(_holds(term, row, kind) for term in re.split(r"&&|,", choice)) for choice in selection.split("||")
    )


def _holds(term: str, row: Row, kind: str) -> bool:
    match = _TERM.fullmatch(term)
    if match is None:
        raise LVMError(f"Failed to parse selection: {term.strip()}")
    field, operator, wanted = _name(match[1], kind), match[2], match[3].strip("\"'")
    if field not in row:
        raise LVMError(f"Unrecognised field: {field}")
    value = _value(row, field)
    if field.endswith("tags"):
        tags = set(str(value).split(",")) - {""}
        asked = wanted.strip("{}").split("&&") if "&&" in wanted else [wanted.strip("{}[]")]
        has = any(re.search(asked[0], tag) for tag in tags) if "~" in operator else set(asked) <= tags
        return has is not operator.startswith("!")
    if isinstance(value, int):
        number = int(re.sub(r"\D", "", wanted) or 0)
        return {"=": value == number, "!=": value != number, ">": value > number, "<": value < number,
                ">=": value >= number, "<=": value <= number}[operator]  # fmt: skip
    if "~" in operator:
        return bool(re.search(wanted, value)) is not operator.startswith("!")
    return (value == wanted) is (operator == "=")
