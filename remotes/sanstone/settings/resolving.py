# SPDX-License-Identifier: Apache-2.0
"""Bring file, datastore and image together: the more special place has the last word."""

from __future__ import annotations

import pathlib
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from sanstone.errors import ConfigurationError, NotSupportedError
from sanstone.secret import Secret
from sanstone.settings.attribute import COMMON, Attribute, Scope
from sanstone.settings.configfile import ConfigFile, Entry
from sanstone.settings.kinds import Value, text_of
from sanstone.settings.problems import InvalidSettings, Problem, printable
from sanstone.settings.resemblance import OPENNEBULA, closest
from sanstone.settings.tables import TABLES, attributes, table

__all__ = ["Setting", "Settings", "refuse_unsupported", "resolve"]


@dataclass(frozen=True, slots=True)
class _Place:
    """Where values were found: how it is called in messages, and how it is put right there."""

    scope: Scope
    origin: str
    words: str
    remedy: str
    texts: Mapping[str, object] = field(repr=False)


@dataclass(frozen=True, slots=True)
class Setting:
    """One value with where it came from; None: not set, and without a default."""

    attribute: Attribute
    value: Value | None = field(repr=False)
    origin: str = "default"

    @property
    def text(self) -> str:
        return "" if self.value is None else self.attribute.kind.spell(self.value)

    @property
    def shown(self) -> str:
        """The text as everybody may see it."""
        return str(Secret(self.text)) if self.attribute.is_secret and self.text else self.text


class Settings:
    """The values that hold for one datastore (and image), read by name and kind.

    A name that the driver does not have is a KeyError, a wrong kind a TypeError: mistakes in the program.
    """

    def __init__(self, driver: str, settings: Mapping[str, Setting], warnings: tuple[str, ...] = ()) -> None:
        self.driver = driver
        self.warnings = warnings
        self._settings = settings

    def __repr__(self) -> str:
        return f"Settings({self.driver!r})"

    def __iter__(self) -> Iterator[Setting]:
        return iter(self._settings.values())

    def __contains__(self, name: str) -> bool:
        return name in self._settings

    def text(self, name: str) -> str:
        """Read any attribute but a secret, in its canonical spelling; empty when not set."""
        setting = self._settings[name]
        if setting.attribute.is_secret:
            raise TypeError(f"{name} is a secret")
        return setting.text

    def integer(self, name: str) -> int:
        value = self._settings[name].value
        if not isinstance(value, int) or isinstance(value, bool):
            raise TypeError(f"{name} is no whole number")
        return value

    def flag(self, name: str) -> bool:
        value = self._settings[name].value
        if not isinstance(value, bool):
            raise TypeError(f"{name} is no flag")
        return value

    def words(self, name: str) -> tuple[str, ...]:
        """Read a list; empty when not set."""
        value = self._settings[name].value
        if value is None:
            return ()
        if not isinstance(value, tuple):
            raise TypeError(f"{name} is no list")
        return value

    def seconds(self, name: str) -> float:
        value = self._settings[name].value
        if not isinstance(value, float):
            raise TypeError(f"{name} is no time")
        return value

    def path(self, name: str) -> pathlib.Path:
        """Read a path, with ``~`` as the home directory of the one who runs this.

        Raises: ConfigurationError when there is no home directory.
        """
        text = self.text(name)
        try:
            return pathlib.Path(text).expanduser()
        except RuntimeError as err:
            raise ConfigurationError(
                f"{name}={text}: the user has no home directory.", f"Give {name} an absolute path."
            ) from err

    def has_secret_text(self, name: str) -> bool:
        """Tell whether a secret stands in the settings themselves."""
        return bool(self._settings[name].text)

    def secret(self, name: str) -> Secret | None:
        """Read a secret, from the file that ``NAME_FILE`` names if it does not stand here itself.

        Raises: ConfigurationError for a file that is missing, empty, or readable by everybody.
        """
        setting = self._settings[name]
        if not setting.attribute.is_secret:
            raise TypeError(f"{name} is no secret")
        if setting.text:
            return Secret(setting.text)
        if self._settings.get(f"{name}_FILE") and self.text(f"{name}_FILE"):
            return _read_secret(f"{name}_FILE", self.path(f"{name}_FILE"))
        return None

    def origin(self, name: str) -> str:
        """Say where the value comes from: ``default``, ``file``, ``datastore san (100)``, ``image 7``."""
        return self._settings[name].origin


def resolve(
    driver: str,
    config: ConfigFile,
    *,
    datastore: Mapping[str, str],
    image: Mapping[str, str] | None = None,
) -> Settings:
    """Work out what holds: default, file, datastore, image; all of it checked.

    ``datastore`` and ``image`` are the attributes of their templates; NAME and ID, if there, name them in
    messages. An empty value is none. Give ``image`` only where a volume is made: what its owner wrote
    must never stand in the way of detaching or deleting.

    Raises: ConfigurationError with all that is wrong, NotSupportedError for an unknown driver.
    """
    known = attributes(driver)
    problems: list[Problem] = []
    warnings = list(config.warnings)
    places = list(_places(driver, config, datastore, image))
    found: dict[str, Setting] = {}
    for place in places:
        here = {}
        for name, raw in place.texts.items():
            if name not in known:
                _note_unknown(place, name, known, warnings)
            elif (setting := _read(known[name], raw, place, problems)) is not None:
                here[name] = setting
        found |= here | _successors(here, place, known, warnings)
    settings = {name: found.get(name) or _default(each, found) for name, each in known.items()}
    problems += [_missing(each.attribute, places) for each in settings.values() if _is_missing(each)]
    if not problems:
        resolved = Settings(driver, settings)
        parts = [TABLES[COMMON]] if driver == COMMON else [table(driver), TABLES[COMMON]]
        problems += [problem for part in parts for problem in part.problems(resolved)]
        warnings += [doubt.message for part in parts for doubt in part.doubts(resolved)]
    if problems:
        raise InvalidSettings(problems)
    return Settings(driver, settings, tuple(dict.fromkeys(warnings)))


def refuse_unsupported(settings: Settings) -> None:
    """Stop at values that are understood but not acted upon yet.

    Raises: NotSupportedError.
    """
    for (name, value), sentence in table(settings.driver).unsupported.items():
        if settings.text(name) == value:
            origin = settings.origin(name)
            where = "in sanstone.conf" if origin == "file" else f"of {origin}"
            raise NotSupportedError(f"{sentence}: {name}={value} {where}.", f"Set {name} to 0.")


def _places(
    driver: str, config: ConfigFile, datastore: Mapping[str, str], image: Mapping[str, str] | None
) -> Iterator[_Place]:
    """List the places from the most general to the most special one."""
    yield _file_place(config, Scope.SANSTONE, "sanstone")
    yield _file_place(config, Scope.HOSTS, "hosts")
    if driver != COMMON:
        yield _file_place(config, Scope.DRIVER, driver)
        box = table(driver).box
        in_file = config.entries(driver).get(box, Entry("", 0)).text
        address = _stripped(datastore.get(box)) or in_file.strip()
        if address:
            yield _file_place(config, Scope.BOX, driver, address)
    yield _template_place(Scope.DATASTORE, "datastore", datastore)
    if image is not None:
        yield _template_place(Scope.IMAGE, "image", image)


def _file_place(config: ConfigFile, scope: Scope, section: str, box: str = "") -> _Place:
    return _Place(
        scope, "file", f"in {config.path}", f"Correct it in {config.path}", config.entries(section, box)
    )


def _template_place(scope: Scope, kind: str, texts: Mapping[str, str]) -> _Place:
    name, number = (_shown(texts.get(key)) for key in ("NAME", "ID"))
    called = f"{kind} {name or number}" if name or number else kind
    origin = f"{called} ({number})" if name and number else called
    return _Place(
        scope,
        origin,
        f"of {called}" if name or number else f"of the {kind}",
        f"Change it with: one{kind} update {shlex.quote(number or name or kind.upper())}",
        texts,
    )


def _read(attribute: Attribute, raw: object, place: _Place, problems: list[Problem]) -> Setting | None:
    """Check one value; None when it is empty or not allowed."""
    text, words, remedy = raw, place.words, f"{place.remedy}."
    if isinstance(raw, Entry):
        text, words = raw.text, f"{place.words}, line {raw.line},"
        remedy = f"{place.remedy}, line {raw.line}."
    if text is None or text == "":
        return None
    name = attribute.name
    shown = f"{name}=***" if attribute.is_secret else f"{name}={_shown(text)}"
    if place.scope not in attribute.scopes:
        if place.scope.is_file:
            return None  # ConfigFile has refused it, if it was read from a file
        problems.append(_misplaced(attribute, f"{shown} {place.words}", remedy))
        return None
    if not isinstance(text, str):
        problems.append(Problem(f"{name} {words} is there more than once or has parts.", remedy=remedy))
        return None
    try:
        trimmed = text_of(text)
        return Setting(attribute, attribute.kind.parse(trimmed), place.origin) if trimmed else None
    except ValueError:
        problems.append(Problem(f"{shown} {words} is not allowed: {attribute.kind.allowed}.", remedy=remedy))
        return None


def _misplaced(attribute: Attribute, what: str, remedy: str) -> Problem:
    where = "the datastore or sanstone.conf" if Scope.DATASTORE in attribute.scopes else "sanstone.conf"
    advice = "Remove it."
    if attribute.is_secret:
        advice = "Remove it, and change the secret: other users could read it."
    return Problem(f"{what} is not allowed there: {attribute.name} is set in {where} only.", advice, remedy)


def _default(attribute: Attribute, found: Mapping[str, Setting]) -> Setting:
    text = attribute.default
    if text is None or (attribute.default_with and attribute.default_with not in found):
        return Setting(attribute, None)
    return Setting(attribute, attribute.kind.parse(text))


def _is_missing(setting: Setting) -> bool:
    return setting.attribute.is_mandatory and setting.value is None


def _missing(attribute: Attribute, places: list[_Place]) -> Problem:
    place = next(each for each in places if each.scope is Scope.DATASTORE)
    return Problem(
        f"{attribute.name} {place.words} is missing.",
        f"It is {attribute.kind.allowed}.",
        f"{place.remedy}.",
    )


def _successors(
    here: Mapping[str, Setting], place: _Place, known: Mapping[str, Attribute], warnings: list[str]
) -> dict[str, Setting]:
    """Let an old option speak for its successor, unless that stands at the same place itself."""
    spoken_for = {}
    for name, old in here.items():
        means = old.attribute.stands_for
        if means is None:
            continue
        if means.attribute in here:
            warnings.append(f"{name} {place.words} is ignored: {means.attribute} is set there too.")
            continue
        successor = known[means.attribute]
        text = means.values[old.text] if means.values else old.text
        spoken_for[means.attribute] = Setting(successor, successor.kind.parse(text), place.origin)
    return spoken_for


def _note_unknown(place: _Place, name: str, known: Mapping[str, Attribute], warnings: list[str]) -> None:
    if place.scope.is_file or not isinstance(name, str) or name.upper() in OPENNEBULA:
        return
    near = closest(name, known)
    if near is not None:
        warnings.append(f"{_shown(name)} {place.words} has no meaning. Is {near} meant?")


def _stripped(value: object) -> str:
    return value.strip() if isinstance(value, str) else ""


def _shown(value: object) -> str:
    """Spell whatever a template holds."""
    return printable(value) if isinstance(value, str) else "" if value is None else "..."


def _read_secret(name: str, path: pathlib.Path) -> Secret:
    try:
        with path.open(encoding="utf-8") as file:
            is_public = path.stat().st_mode & 0o004
            line = file.readline(4096).rstrip("\r\n")
    except (OSError, UnicodeDecodeError, ValueError) as err:
        reason = err.strerror if isinstance(err, OSError) else "it is not a text in UTF-8"
        raise ConfigurationError(
            f"{name}={path} cannot be read: {reason}.", "oneadmin needs to read it."
        ) from err
    if is_public:
        raise ConfigurationError(f"{name}={path} can be read by every user.", f"Change that: chmod o= {path}")
    if not line:
        raise ConfigurationError(f"{name}={path}: the first line is empty.", "Write the password there.")
    return Secret(line)
