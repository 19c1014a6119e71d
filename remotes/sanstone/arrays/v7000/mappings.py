# SPDX-License-Identifier: Apache-2.0
"""Which host reaches which volume, and by which addresses."""

from __future__ import annotations

from collections.abc import Sequence

from sanstone.arrays.v7000 import codes
from sanstone.arrays.v7000.codes import RefusedError
from sanstone.arrays.v7000.facts import TARGET_QUESTIONS, read_targets
from sanstone.arrays.v7000.reading import read_volumes, volumes_where
from sanstone.arrays.v7000.settling import settle
from sanstone.arrays.v7000.terminal import Answer, Terminal, command, listing, rows
from sanstone.errors import ArrayError, ConfigurationError, ConflictError, NotFoundError
from sanstone.model import Connection, Portal, Target
from sanstone.transport.facts import Facts

__all__ = ["Mappings"]

_MAPPED_ELSEWHERE = frozenset({codes.MAPPED_TO_OTHER, codes.MAPPED_OTHER_LUN})


class Mappings:
    """Host mappings of one box."""

    def __init__(self, terminal: Terminal, facts: Facts) -> None:
        self.name = terminal.name
        self._terminal = terminal
        self._facts = facts

    def map(self, name: str, host: str, *, is_shared: bool = False) -> Connection:
        what = f"Volume {name} could not be mapped to {host}"
        return settle(self._terminal, self._facts, what, lambda: self._map(name, host, is_shared=is_shared))

    def _map(self, name: str, host: str, *, is_shared: bool, options: Sequence[str] = ()) -> Connection:
        alias = self._facts.get(f"host {host}") or host
        force = ["-force", *options] if is_shared else []
        change = command("mkvdiskhostmap", *force, "-host", alias, name)
        answer = self._terminal.attempt(change, *self._questions(name))
        mappings, volumes = rows(answer.sections[1]), read_volumes(answer.sections[2])
        others = [row["host_name"] for row in mappings if row["host_name"] != alias]
        refused = answer.codes()
        if others and not is_shared and (len(others) < len(mappings) or refused & _MAPPED_ELSEWHERE):
            raise ConflictError(
                f"Volume {name} is mapped to {', '.join(others)} already: {host} does not get it too.",
                "See whether a VM still runs there; if not, detach the volume from it first.",
            )
        if len(others) < len(mappings):
            if volumes and not volumes[0].volume.is_online:
                if answer.sections[0]:
                    self._unmap(name, host)
                raise ArrayError(
                    f"Volume {name} is offline on {self.name}.", "See its pool and FlashCopy maps there."
                )
            return self.connection(name, host, answer.sections[1:], alias)
        if not volumes:
            raise NotFoundError(f"Volume {name} is not on {self.name}.", "Was it deleted there by hand?")
        if codes.MAPPED_OTHER_LUN in refused and others and is_shared and not options:
            # newer firmware wants one LUN for all hosts
            return self._map(name, host, is_shared=True, options=("-scsi", mappings[0]["SCSI_id"]))
        if codes.LUN_TAKEN in refused and "-scsi" in options:
            return self._map(name, host, is_shared=True, options=("-allowmismatchedscsiids",))
        if refused & codes.ABSENT:
            self._facts.forget()
            if self.alias(host) != alias:
                return self._map(name, host, is_shared=is_shared)
        complaint = answer.complaints[0] if answer.complaints else "no reason given"
        code, text = codes.find_code(complaint) or ("", complaint)
        raise RefusedError(self.name, code, text, change)

    def unmap(self, name: str, host: str) -> None:
        what = f"Volume {name} could not be unmapped from {host}"
        settle(self._terminal, self._facts, what, lambda: self._unmap(name, host))

    def _unmap(self, name: str, host: str) -> bool:
        change = self.unmapping(name, host)
        answer = self._terminal.attempt(change, listing("lsvdiskhostmap", name))
        return self.is_unmapped(host, answer, answer.sections[1], change) or self._unmap(name, host)

    def unmapping(self, name: str, host: str) -> str:
        return command("rmvdiskhostmap", "-host", self._facts.get(f"host {host}") or host, name)

    def is_unmapped(self, host: str, answer: Answer, mappings: Sequence[str], change: str) -> bool:
        """Tell whether the host is gone from ``mappings``, which were read after ``change``.

        False when the box knows it by another name than ``change`` used, which is known from now on.

        Raises: RefusedError.
        """
        alias = self._facts.get(f"host {host}") or host
        left = {row["host_name"] for row in rows(mappings)}
        if alias not in left:
            other = left & set(_spellings(host)) or {each for each in left if each.split(".", 1)[0] == host}
            if len(other) != 1:
                return True
            self._facts.put(f"host {host}", other.pop())
            return False
        complaint = answer.complaints[0] if answer.complaints else "no reason given"
        code, text = codes.find_code(complaint) or ("", complaint)
        raise RefusedError(self.name, code, text, change)

    def _questions(self, name: str) -> list[str]:
        """What tells all about a mapping: LUNs, volume, and the targets if they are not known yet."""
        asked = [listing("lsvdiskhostmap", name), volumes_where(f"name={name}")]
        return asked if self.targets() is not None else [*asked, *TARGET_QUESTIONS]

    def connection(
        self, name: str, host: str, sections: Sequence[Sequence[str]], alias: str | None = None
    ) -> Connection:
        """Read the answers to ``_questions``."""
        if len(sections) > 2:
            self.remember_targets(read_targets(sections[2:]))
        alias = alias or self.alias(host)
        mapping = next((row for row in rows(sections[0]) if row["host_name"] == alias), None)
        volumes = read_volumes(sections[1])
        if mapping is None or not volumes:
            raise ArrayError(
                f"{self.name} mapped {name} to {host} but does not list it.", "Run the action again."
            )
        found = volumes[0]
        groups = self.targets() or {}
        targets = groups.get(found.io_group) or [each for group in groups.values() for each in group]
        if not targets:
            self._facts.forget()
            raise ConfigurationError(
                f"{self.name} has no iSCSI address that serves hosts.",
                "Configure its iSCSI ports (cfgportip).",
            )
        volume = found.volume
        return Connection(name, volume.wwid, volume.size, int(mapping["SCSI_id"]), tuple(targets))

    def alias(self, host: str) -> str:
        """Find what the box calls a host: the same name, or its first label, or the longer name.

        Raises: ConfigurationError when it is not registered.
        """
        known = self._facts.get(f"host {host}")
        if known:
            return str(known)
        (section,) = self._terminal.ask(listing("lshost")).sections
        return self.find_alias(host, section)

    def find_alias(self, host: str, section: Sequence[str]) -> str:
        there = [row["name"] for row in rows(section)]
        for name in _spellings(host):
            if name in there:
                self._facts.put(f"host {host}", name)
                return name
        longer = [name for name in there if name.split(".", 1)[0] == host]
        if len(longer) == 1:
            self._facts.put(f"host {host}", longer[0])
            return longer[0]
        raise ConfigurationError(
            f"Host {host} is not registered on {self.name}; it knows {', '.join(there) or 'no host'}.",
            f"Register it there: mkhost -iscsiname INITIATOR -name {host.split('.', 1)[0]}",
        )

    def targets(self) -> dict[str, list[Target]] | None:
        known = self._facts.get("targets")
        if known is None:
            return None
        return {
            group: [Target(iqn, tuple(Portal(each) for each in addresses)) for iqn, addresses in targets]
            for group, targets in known.items()
        }

    def remember_targets(self, groups: dict[str, list[Target]]) -> None:
        self._facts.put(
            "targets",
            {
                group: [[each.iqn, [portal.address for portal in each.portals]] for each in targets]
                for group, targets in groups.items()
            },
        )


def _spellings(host: str) -> tuple[str, ...]:
    return (host, host.split(".", 1)[0])
