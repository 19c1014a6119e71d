# SPDX-License-Identifier: Apache-2.0
"""``multipath`` and ``multipathd`` of multipath-tools 0.9.4."""

from __future__ import annotations

import getopt
import json
import re
from collections.abc import Callable

from lab.host.calls import Answer, Call, fail, plain_device
from lab.host.devices import Disk
from lab.host.kernel import Kernel
from lab.host.mapper import Map, Mapper

__all__ = ["Multipath", "Multipathd"]

FORMATS: dict[str, str] = {
    "w": "uuid", "d": "dev", "t": "dm_st", "o": "dev_st", "T": "chk_st", "i": "hcil", "D": "dev_t",
    "m": "multipath", "s": "vend/prod/rev", "p": "pri", "S": "size", "n": "target WWNN", "c": "checker",
    "N": "host WWNN", "R": "host WWPN", "r": "target WWPN", "a": "host adapter", "z": "serial",
}  # fmt: skip
MAP_FORMATS: dict[str, str] = {
    "n": "name", "w": "uuid", "d": "sysfs", "N": "paths", "Q": "queueing", "t": "dm-st", "S": "size",
    "r": "write_prot", "x": "path_faults", "f": "features", "s": "vend/prod/rev", "v": "vend", "p": "prod",
}  # fmt: skip


class Multipath:
    """Answers ``multipath``: what it does itself, it does whether multipathd runs or not."""

    def __init__(self, kernel: Kernel, mapper: Mapper) -> None:
        self._kernel = kernel
        self._mapper = mapper

    def __call__(self, call: Call) -> Answer:
        if not call.is_root:
            return fail(1, "need to be root")
        try:
            pairs, words = getopt.gnu_getopt(list(call.argv), "hlLrfFcCadquUwWiv:p:R:b:B:e:tT")
        except getopt.GetoptError as err:
            return fail(1, f"multipath: {err}")
        flags = "".join(flag[1] for flag, _ in pairs)
        word = plain_device(words[0], self._kernel.root) if words else ""
        if "l" in flags:
            return self._list(word)
        one_name: dict[str, Callable[[str, Call], Answer]] = {
            "f": self._flush,
            "a": self._add_wwid,
            "w": self._forget_wwid,
            "c": self._is_path,
            "C": self._is_usable,
        }
        for flag, action in one_name.items():
            if flag in flags:
                return action(word, call) if word else fail(1, f"multipath: -{flag} needs a device")
        if "F" in flags:
            answers = [self._flush(found.name, call) for found in self._mapper.maps()]
            return Answer(
                max((one.code for one in answers), default=0), "", "".join(one.err for one in answers)
            )
        if "t" in flags or "T" in flags:
            return Answer(out=f'defaults {{\n\tfind_multipaths "{self._mapper.find_multipaths}"\n}}\n')
        return self._coalesce(word)

    def _list(self, word: str) -> Answer:
        if not word:
            return Answer(out="".join(topology(self._mapper, one) for one in self._mapper.maps()))
        found = self._find(word)
        return Answer(out=topology(self._mapper, found)) if found else Answer()

    def _flush(self, word: str, call: Call) -> Answer:
        found = self._mapper.find(word)
        if found is None:
            return fail(1, f"{word} is not a multipath device")
        if not call.wait_while(lambda: self._mapper.is_hung(found), self._kernel.halted):
            return fail(1, f"{found.name}: interrupted")
        return Answer() if self._mapper.flush(found) else fail(1, f"{found.name}: map in use")

    def _add_wwid(self, word: str, call: Call) -> Answer:
        disk = self._disk(word)
        wwid = disk.wwid if disk else word
        self._mapper.remember(wwid)
        return Answer(out=f"wwid '{wwid}' added\n")

    def _forget_wwid(self, word: str, call: Call) -> Answer:
        disk = self._disk(word)
        wwid = disk.wwid if disk else word
        if self._mapper.forget(wwid):
            return Answer(out=f"wwid '{wwid}' removed\n")
        return Answer(1, f"wwid '{wwid}' not in wwids file\n")

    def _is_path(self, word: str, call: Call) -> Answer:
        disk = self._disk(word)
        if disk is not None and disk.wwid in self._mapper.known_wwids():
            return Answer(out=f"{word} is a valid multipath device path\n")
        return Answer(1, f"{word} is not a valid multipath device path\n")

    def _is_usable(self, word: str, call: Call) -> Answer:
        found = self._mapper.find(word)
        if found is None:
            return fail(1, f"{word} is not a multipath device")
        return Answer() if found.usable else fail(1, f"{found.name}: no usable paths found")

    def _coalesce(self, word: str) -> Answer:
        found = self._find(word) if word else None
        disk = self._disk(word) if word else None
        if found is not None:
            wwids = [found.wwid]
        elif disk is not None:
            wwids = [disk.wwid]
        elif word:
            wwids = [word]
        else:
            wwids = list(dict.fromkeys(one.wwid for one in self._kernel.disks()))
        before = {one.wwid for one in self._mapper.maps()}
        made = [one for wwid in wwids if (one := self._mapper.assemble(wwid)) is not None]
        if word and not made:
            return fail(1, f"{word}: no usable paths found")
        lines = (
            ("reload" if one.wwid in before else "create") + ": " + topology(self._mapper, one)
            for one in made
        )
        return Answer(out="".join(lines))

    def _find(self, word: str) -> Map | None:
        disk = self._disk(word)
        return self._mapper.map_of(disk.name) if disk else self._mapper.find(word)

    def _disk(self, word: str) -> Disk | None:
        return self._kernel.disk(word.removeprefix("/dev/"))


class Multipathd:
    """Answers ``multipathd`` as its client: words of a command, or ``-k'words'``.

    ``fail_code`` is what the client exits with after ``fail``: versions differ, so no caller may rely on it.
    """

    def __init__(self, kernel: Kernel, mapper: Mapper) -> None:
        self._kernel = kernel
        self._mapper = mapper
        self.fail_code = 1

    def __call__(self, call: Call) -> Answer:
        if not call.is_root:
            return fail(1, "need to be root")
        words = list(call.argv)
        if words and words[0].startswith("-k"):
            words = [words[0][2:], *words[1:]]
        words = _split(" ".join(_quoted(word) for word in words))
        if not words:
            return fail(
                1, "multipathd: already running" if self._mapper.is_running else "multipathd: no command"
            )
        if not self._mapper.is_running:
            return Answer(1)  # without a word
        answer = self._show(words[1:]) if words[0] in ("show", "list") else self._change(words, call)
        return Answer(self.fail_code, "fail\n") if answer is None else Answer(out=answer)

    def _show(self, words: list[str]) -> str | None:
        match words:
            case ["daemon"]:
                return "pid 812 idle\n"
            case ["status"]:
                return f"path checker states:\nup                  {len(self._kernel.disks())}\n"
            case ["wildcards"]:
                return "".join(f"%{key}  {name}\n" for key, name in {**FORMATS, **MAP_FORMATS}.items())
            case ["paths", *rest]:
                lines = [self._path_fields(disk) for disk in self._kernel.disks()]
                if not lines:
                    return "ok\n"  # the daemon's word for an empty answer
                return _table(rest, lines, FORMATS, "%i %d %D %p %t %T %o")
            case ["maps" | "multipaths", "json"]:
                return _dumps({"maps": [self._map_json(one) for one in self._mapper.maps()]})
            case ["maps" | "multipaths" | "topology", "topology"] | ["topology"]:
                return "".join(topology(self._mapper, one) for one in self._mapper.maps())
            case ["maps" | "multipaths", *rest]:
                maps = [self._map_fields(one) for one in self._mapper.maps()]
                return _table(rest, maps, MAP_FORMATS, "%n %d %w")
            case ["map" | "multipath", name, *rest]:
                found = self._mapper.find(name)
                if found is None:
                    return None
                if rest == ["json"]:
                    return _dumps({"map": self._map_json(found)})
                if rest in ([], ["topology"]):
                    return topology(self._mapper, found)
                return _table(rest, [self._map_fields(found)], MAP_FORMATS, "%n %d %w")
        return None

    def _change(self, words: list[str], call: Call) -> str | None:
        match words:
            case ["reconfigure", *_]:
                self._mapper.reconfigure()
                return "ok\n"
            case [("disablequeueing" | "restorequeueing") as verb, "maps" | "multipaths"]:
                for found in self._mapper.maps():
                    self._set_queueing(found, verb)
                return "ok\n"
            case [verb, "path", name]:
                disk = self._kernel.disk(plain_device(name, self._kernel.root).removeprefix("/dev/"))
                return self._change_path(verb, name, disk)
            case [verb, "map" | "multipath", name]:
                return self._change_map(verb, plain_device(name, self._kernel.root), call)
        return None

    def _change_path(self, verb: str, name: str, disk: Disk | None) -> str | None:
        if verb in ("add", "reinstate") and disk is not None:
            return "ok\n" if self._mapper.add_path(disk) else None
        if verb in ("del", "remove"):
            return "ok\n" if self._mapper.drop_path(name.rpartition("/")[2]) else None
        return None

    def _change_map(self, verb: str, name: str, call: Call) -> str | None:
        if verb == "add":
            wwid = name.rpartition("/")[2]
            return "ok\n" if self._mapper.find(name) or self._mapper.assemble(wwid) else None
        found = self._mapper.find(name)
        if found is None:
            return None
        if verb in ("disablequeueing", "restorequeueing"):
            self._set_queueing(found, verb)
            return "ok\n"
        if verb in ("del", "remove"):
            is_free = call.wait_while(lambda: self._mapper.is_hung(found), self._kernel.halted)
            return "ok\n" if is_free and self._mapper.flush(found) else None
        if verb == "resize":
            return "ok\n" if self._mapper.resize(found) else None
        return "ok\n" if verb in ("reload", "suspend", "resume", "setprstatus", "unsetprstatus") else None

    def _set_queueing(self, found: Map, verb: str) -> None:
        if verb == "disablequeueing":
            self._mapper.stop_queueing(found)
        else:
            found.queueing = True

    def _path_fields(self, disk: Disk) -> dict[str, str]:
        dm, kernel, checker = self._mapper.path_state(disk)
        found = self._mapper.map_of(disk.name)
        return {
            "w": disk.wwid, "d": disk.name, "t": dm, "o": kernel, "T": checker, "i": disk.hctl,
            "D": disk.number, "m": found.name if found else "[orphan]", "p": "1", "S": _size(disk.size),
            "s": f"{disk.vendor.strip()},{disk.model.strip()}", "n": disk.session.target, "c": "tur",
            "N": "[undef]", "R": "[undef]", "r": "[undef]", "a": disk.session.portal[0], "z": disk.wwid[-8:],
        }  # fmt: skip

    def _map_fields(self, found: Map) -> dict[str, str]:
        disk = next((one for name in found.paths if (one := self._kernel.disk(name))), None)
        vendor, model = (disk.vendor.strip(), disk.model.strip()) if disk else ("##", "##")
        return {
            "n": found.name, "w": found.wwid, "d": f"dm-{found.minor}", "N": str(len(found.paths)),
            "Q": queueing(found), "t": "active", "S": _size(found.size), "r": "rw", "x": "0",
            "f": features(found), "s": f"{vendor},{model}", "v": vendor, "p": model,
        }  # fmt: skip

    def _map_json(self, found: Map) -> dict[str, object]:
        fields = self._map_fields(found)
        paths = []
        for disk in (one for name in found.paths if (one := self._kernel.disk(name))):
            dm, kernel, checker = self._mapper.path_state(disk)
            paths.append({
                "dev": disk.name, "dev_t": disk.number, "dm_st": dm, "dev_st": kernel, "chk_st": checker,
                "checker": "tur", "pri": 1, "host_wwnn": "[undef]", "target_wwnn": disk.session.target,
                "host_wwpn": "[undef]", "target_wwpn": "[undef]", "host_adapter": disk.session.portal[0],
                "lun_hex": f"0x{disk.lun:04x}000000000000", "marginal_st": "normal",
            })  # fmt: skip
        group = {
            "selector": "service-time 0", "pri": 1, "dm_st": "active" if found.usable else "enabled",
            "marginal_st": "normal", "group": 1, "paths": paths,
        }  # fmt: skip
        return {
            "name": found.name, "uuid": found.wwid, "sysfs": fields["d"], "failback": "-",
            "queueing": queueing(found), "paths": len(found.usable), "write_prot": "rw", "dm_st": "active",
            "features": features(found), "hwhandler": "0", "action": "", "path_faults": 0,
            "vend": fields["v"], "prod": fields["p"], "rev": "", "switch_grp": 0, "map_loads": 1,
            "total_q_time": 0, "q_timeouts": 0, "path_groups": [group] if paths else [],
        }  # fmt: skip


def topology(mapper: Mapper, found: Map) -> str:
    """Write a map as ``multipath -ll`` does."""
    kernel = mapper.kernel
    disks = [one for name in found.paths if (one := kernel.disk(name))]
    product = f"{disks[0].vendor.strip()},{disks[0].model.strip()}" if disks else "##,##"
    lines = [
        f"{found.name} dm-{found.minor} {product}",
        f"size={_size(found.size)} features='{features(found)}' hwhandler='0' wp=rw",
    ]
    for number, disk in enumerate(disks):
        dm, state, checker = mapper.path_state(disk)
        is_last = number == len(disks) - 1
        group = "active" if dm == "active" else "enabled"
        lines.append(f"{'`' if is_last else '|'}-+- policy='service-time 0' prio=1 status={group}")
        bar = " " if is_last else "|"
        lines.append(f"{bar} `- {disk.hctl} {disk.name} {disk.number} {dm} {checker} {state}")
    return "\n".join([*lines, ""])


def features(found: Map) -> str:
    return "1 queue_if_no_path" if found.queueing else "0"


def queueing(found: Map) -> str:
    if found.usable:
        return "20 chk"
    return "on" if found.queueing else "off"


def _size(size: int) -> str:
    value, units = float(size), "BKMGTP"
    for unit in units:
        if value < 1024 or unit == units[-1]:
            return f"{value:.1f}{unit}" if value < 10 and value != int(value) else f"{value:.0f}{unit}"
        value /= 1024
    raise AssertionError("unreachable")


def _quoted(word: str) -> str:
    return f'"{word}"' if " " in word and not word.startswith(("show", "list")) else word


def _split(command: str) -> list[str]:
    return [quoted or plain for quoted, plain in re.findall(r"\"([^\"]*)\"|(\S+)", command)]


def _table(words: list[str], rows: list[dict[str, str]], names: dict[str, str], default: str) -> str | None:
    """Fill in a format; the plain form has a header and columns of one width, ``raw`` has neither."""
    is_raw = "raw" in words
    rest = [word for word in words if word != "raw"]
    if rest[:1] == ["format"] and len(rest) == 2:
        template = rest[1]
    elif not rest:
        template = default
    else:
        return None
    table = rows if is_raw else [names, *rows]
    keys = set(re.findall(r"%(\w)", template))
    width = {key: 0 if is_raw else max((len(row.get(key, "")) for row in table), default=0) for key in keys}

    def fill(row: dict[str, str]) -> str:
        return re.sub(r"%(\w)", lambda found: row.get(found[1], "").ljust(width[found[1]]), template)

    return "".join(f"{fill(row).rstrip()}\n" for row in table)


def _dumps(content: dict[str, object]) -> str:
    return json.dumps({"major_version": 0, "minor_version": 1, **content}, indent=3) + "\n"
