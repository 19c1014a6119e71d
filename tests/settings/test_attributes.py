# SPDX-License-Identifier: Apache-2.0
"""Every attribute with its default and both sides of its limits."""

from __future__ import annotations

import string
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from sanstone.errors import NotSupportedError, SanstoneError
from sanstone.settings import (
    DRIVERS,
    Attribute,
    InvalidSettings,
    Scope,
    Settings,
    attributes,
    resolve,
)
from tests.settings.samples import NO_FILE, SAN, conf, explains_itself, outcome, refusal

FLAG_BAD = ("2", "-1", "true", "on", "1 0", "01", "yess")
RATE_GOOD = {"0": "0", "100": "100", " 7\t": "7", "007": "7"}
RATE_BAD = ("-1", "101", "500", "5.0", "5e1", "0x10", "+5", "5 5", "ten", "\u0665\u0660", "1_0")
PERCENT_GOOD = {"0": "0", "100": "100", "2%": "2", "2 %": "2"}
PERCENT_BAD = ("-1%", "101", "101%", "%", "2%%", "2 percent", "\uff12")
HOST_GOOD = {
    "a": "a",
    "v7000-a.example.com": "v7000-a.example.com",
    "10.0.0.1": "10.0.0.1",
    "fe80::1": "fe80::1",
    "FE80:0:0::1": "fe80::1",
    "node_1": "node_1",
    "x" * 63: "x" * 63,
}
HOST_BAD = (
    "-oProxyCommand=x",
    "a;b",
    "a b",
    "'a'",
    '"a"',
    "$(a)",
    "`a`",
    "a..b",
    ".a",
    "a.",
    "a-",
    "x" * 64,
    ".".join(["x" * 60] * 5),
    "256.1.1.1",
    "123",
    "a:22",
    "fe80::1%eth0;x",
    "user@a",
    "b\u00fccher",
    "a/b",
)
PATH_GOOD = {"/": "/", "/var/tmp": "/var/tmp", "~/x": "~/x", "/srv/b\u00fccher": "/srv/b\u00fccher"}
PATH_BAD = ("var", "/a b", "/a;b", "/a/../b", "/$HOME", "/a'b", '/a"b', "~other/x", "/a*")
NAME_GOOD = {"Pool_0": "Pool_0", "_a.b-c": "_a.b-c", "p" * 63: "p" * 63}
NAME_BAD = ("0pool", "-p", "p" * 64, "p;q", "p'q", 'p"q', "p|q", "p\u00e9", "$(p)", "p\\q")


@dataclass(frozen=True)
class Case:
    """``good`` maps what is written to what is read; ``bad`` is refused."""

    default: str
    good: Mapping[str, str]
    bad: tuple[str, ...]


FLAG_GOOD = {"1": "1", "0": "0", "YES": "1", "no": "0"}


def duration(default: str, least: str, most: str, below: str, above: str) -> Case:
    good = {least: least, most: f"{float(most):g}", "90 s": "90", "2min": "120", "60.5": "60.5"}
    return Case(default, good, (below, above, "-5", "5 parsecs", "1:30", "\u0665", "1e2", "inf", "nan"))


CASES = {
    "MGMT": Case("v7000-a", HOST_GOOD, HOST_BAD),
    "MGMT_PORT": Case(
        "22", {"1": "1", "65535": "65535", "022": "22"}, ("0", "65536", "-22", "ssh", "22;", "4294967318")
    ),
    "MGMT_USER": Case(
        "oneadmin",
        {"superuser": "superuser", "_a.b-c": "_a.b-c", "ad\\one": "ad\\one", "u" * 64: "u" * 64},
        ("-l", "a b", "a;b", "1a", "u" * 65, "r\u00f6der", "a'b"),
    ),
    "MGMT_KEY": Case("", PATH_GOOD, PATH_BAD),
    "MGMT_PASSWORD": Case("", {"x": "x", "a b;'\"$": "a b;'\"$", "x" * 256: "x" * 256}, ("x" * 257,)),
    "MGMT_PASSWORD_FILE": Case("", PATH_GOOD, PATH_BAD),
    "MGMT_KNOWN_HOSTS": Case("~/.ssh/known_hosts", PATH_GOOD, PATH_BAD),
    "BASE_IQN": Case(
        "iqn.1986-03.com.ibm",
        {
            "iqn.2012-02.org.opennebula": "iqn.2012-02.org.opennebula",
            "iqn.1986-12.com.ibm:2145.a": "iqn.1986-12.com.ibm:2145.a",
        },
        (
            "iqn.1986-13.com.ibm",
            "iqn.1986-00.com.ibm",
            "iqn.86-03.a",
            "eui.0",
            "iqn.1986-03.a b",
            "iqn.1986-03.a;b",
        ),
    ),
    "MDISK_GROUP": Case(
        "mdiskgrp0", {**NAME_GOOD, "a b": "a b", "a:b": "a b", " a  b c ": "a b c"}, (*NAME_BAD, ":", "a 0b")
    ),
    "IO_GROUP": Case("io_grp0", NAME_GOOD, (*NAME_BAD, "a b")),
    "THIN_PROVISION": Case("1", FLAG_GOOD, FLAG_BAD),
    "RSIZE": Case("2", PERCENT_GOOD, PERCENT_BAD),
    "COPIES": Case("1", {"1": "1", "2": "2"}, ("0", "3", "1.0", "one")),
    "SYNC_RATE": Case("50", RATE_GOOD, RATE_BAD),
    "VTYPE": Case("striped", {"striped": "striped", "STRIPED": "striped"}, ("image", "sequential", "stripe")),
    "SNAPSHOT": Case("1", FLAG_GOOD, FLAG_BAD),
    "SNAPSHOT_RSIZE": Case("0", PERCENT_GOOD, PERCENT_BAD),
    "COPYRATE": Case("50", RATE_GOOD, RATE_BAD),
    "CLEANRATE": Case("50", RATE_GOOD, RATE_BAD),
    "GRAINSIZE": Case("256", {"64": "64", "256": "256"}, ("32", "63", "65", "128", "255", "257", "64 256")),
    "REPLICATION": Case("0", {"0": "0", "NO": "0"}, FLAG_BAD),
    "MGMT_AUX": Case("", HOST_GOOD, HOST_BAD),
    "CLUSTER": Case(
        "",
        {"00000200A0000000": "00000200A0000000", "f" * 16: "f" * 16},
        ("0" * 15, "0" * 17, "g" * 16, "0x" + "0" * 14),
    ),
    "FAILOVER": Case("0", {"0": "0", "NO": "0"}, FLAG_BAD),
    "BRIDGE_LIST": Case("", {**HOST_GOOD, "a  b\tc": "a b c"}, (*(set(HOST_BAD) - {"a b"}), "a ;", "a,b")),
    "NO_ISCSI": Case("", {"a b": "a b", "fe80::1": "fe80::1"}, ("a $HOST", "$HOSTNAME;", "a,b", "-a")),
    "SSH_OPTIONS": Case(
        "",
        {"-4": "-4", "-o A=1 -i '/k y'": "-o A=1 -i '/k y'", "-o  B": "-o B"},
        ("host -4", "'-4", "-4 '"),
    ),
    "RESTRICTED_DIRS": Case("", {**PATH_GOOD, "/a /b": "/a /b"}, ("/a b", "a", "/a /../etc", "/;")),
    "SAFE_DIRS": Case("", {**PATH_GOOD, "/a /b": "/a /b"}, ("/a b", "a", "/a/..")),
    "STAGING_DIR": Case("/var/tmp", PATH_GOOD, PATH_BAD),
    "COPY_TOOL": Case(
        "qemu-img", {"dd": "dd", "DDPT": "ddpt", "qemu-img": "qemu-img"}, ("cp", "dd;", "qemu img")
    ),
    "USE_DDPT": Case("", FLAG_GOOD, FLAG_BAD),
    "CONNECT_TIMEOUT": duration("15", "1", "600", "0.9", "601"),
    "COMMAND_TIMEOUT": duration("180", "1", "3600", "0", "1.1 h"),
    "SESSION_TIMEOUT": duration("600", "1", "86400", "0.5", "25 h"),
    "FLOCK_TIMEOUT": duration("", "1", "86400", "0.5", "25 h"),
    "ATTACH_TIMEOUT": duration("60", "5", "3600", "4.9", "61min"),
    "COPY_TIMEOUT": duration("86400", "60", "2592000", "59", "31 d"),
    "DELETE_WAIT": duration("600", "0", "604800", "-1", "8d"),
    "ARRAY_SESSIONS": Case("4", {"1": "1", "64": "64"}, ("0", "65", "-4", "4.5", "many")),
    "STATE_DIR": Case("~/.sanstone", PATH_GOOD, PATH_BAD),
    "FRONTEND": Case("", HOST_GOOD, HOST_BAD),
    "REMOTES_DIR": Case("/var/lib/one/remotes", PATH_GOOD, PATH_BAD),
    "BACKUP_COMPARE": Case("1", FLAG_GOOD, FLAG_BAD),
    "BACKUP_BASE_PATH": Case("", PATH_GOOD, PATH_BAD),
    "FREEZE_TIMEOUT": duration("30", "1", "600", "0.9", "601"),
    "LIBVIRT_URI": Case(
        "qemu:///system",
        {"qemu+ssh://node/system": "qemu+ssh://node/system", "test:///default": "test:///default"},
        ("qemu", "qemu:", "qemu:///a b", "--help:x", "Qemu:///system"),
    ),
}
KNOWN = attributes("v7000")


def at_its_place(attribute: Attribute, text: str, tmp_path: Path) -> Settings:
    """Set one attribute in the most special place where it may stand, a datastore before an image."""
    datastore = {**SAN, "BRIDGE_LIST": "node1", "NO_ISCSI": "x"}
    datastore.pop(attribute.name, None)
    if Scope.DATASTORE in attribute.scopes:
        return resolve("v7000", NO_FILE, datastore={**datastore, attribute.name: text})
    section = {Scope.SANSTONE: "sanstone", Scope.HOSTS: "hosts"}.get(attribute.scopes[-1], '"v7000-a"')
    header = f"v7000 {section}" if section.startswith('"') else section
    return resolve("v7000", conf(tmp_path, f"[{header}]\n{attribute.name} = {text}\n"), datastore=datastore)


def read(settings: Settings, name: str) -> str:
    if KNOWN[name].is_secret:
        secret = settings.secret(name)
        return secret.reveal() if secret else ""
    return settings.text(name)


def test_every_attribute_has_cases() -> None:
    assert CASES.keys() == KNOWN.keys()


@pytest.mark.parametrize("name", CASES)
def test_default_is_what_the_reference_says(name: str) -> None:
    assert read(resolve("v7000", NO_FILE, datastore=SAN), name) == CASES[name].default


@pytest.mark.parametrize(
    ("name", "text"), [(name, text) for name, case in CASES.items() for text in case.good]
)
def test_allowed_value_is_read(name: str, text: str, tmp_path: Path) -> None:
    assert read(at_its_place(KNOWN[name], text, tmp_path), name) == CASES[name].good[text]


@pytest.mark.parametrize(
    ("name", "text"), [(name, text) for name, case in CASES.items() for text in case.bad]
)
def test_value_out_of_limits_is_refused_by_name(name: str, text: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidSettings) as caught:
        at_its_place(KNOWN[name], text, tmp_path)
    message = caught.value.problems[0].message
    assert message.startswith(f"{name}=")
    assert message.endswith(f"is not allowed: {KNOWN[name].kind.allowed}.")
    assert message.isprintable()


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("text", ["a\nb", "1\n", "\x00", "1\x07", "\ud800", "\u202e1", "x" * 5000])
def test_unprintable_or_endless_value_is_refused(name: str, text: str) -> None:
    place = {"image" if Scope.IMAGE in KNOWN[name].scopes else "datastore": {name: text}}
    place["datastore"] = {**SAN, **place.get("datastore", {})}
    problem = refusal(**place).problems[0]  # type: ignore[arg-type]
    assert problem.message.startswith(name)
    assert problem.message.isprintable()
    assert len(problem.message) < 300


@pytest.mark.parametrize("name", [name for name in CASES if Scope.DATASTORE in KNOWN[name].scopes])
def test_empty_value_is_none(name: str, tmp_path: Path) -> None:
    config = conf(tmp_path, "[v7000]\nMGMT = v7000-a\n")
    settings = resolve("v7000", config, datastore={"NAME": "san", name: " \t"})
    assert read(settings, name) == CASES[name].default
    assert settings.origin(name) == ("file" if name == "MGMT" else "default")


def test_every_default_is_allowed_and_every_help_is_a_sentence() -> None:
    for driver in DRIVERS:
        for each in attributes(driver).values():
            assert each.default is None or each.kind.parse(each.default) is not None
            assert each.help.endswith(".")
            assert each.group
            assert each.shown_when is None or each.shown_when[0] in attributes(driver)
            assert not (each.is_secret and each.default)


def test_images_may_not_say_what_reaches_beyond_them() -> None:
    of_images = {name for name, each in KNOWN.items() if Scope.IMAGE in each.scopes}
    assert of_images == {
        "THIN_PROVISION",
        "RSIZE",
        "SNAPSHOT",
        "SNAPSHOT_RSIZE",
        "COPYRATE",
        "CLEANRATE",
        "GRAINSIZE",
    }


def test_values_are_typed() -> None:
    settings = resolve("v7000", NO_FILE, datastore={**SAN, "MDISK_GROUP": "a b", "DELETE_WAIT": "2 h"})
    assert settings.driver == "v7000"
    assert settings.integer("COPYRATE") == 50
    assert settings.integer("RSIZE") == 2
    assert settings.flag("SNAPSHOT") is True
    assert settings.words("MDISK_GROUP") == ("a", "b")
    assert settings.words("BRIDGE_LIST") == ()
    assert settings.seconds("DELETE_WAIT") == 7200.0
    assert settings.path("STATE_DIR") == Path("~/.sanstone").expanduser()
    assert settings.secret("MGMT_PASSWORD") is None
    assert "COPYRATE" in settings
    assert "COPY_RATE" not in settings


@pytest.mark.parametrize(
    ("read_as", "name"),
    [
        ("integer", "SNAPSHOT"),
        ("flag", "COPIES"),
        ("words", "MGMT"),
        ("seconds", "COPYRATE"),
        ("secret", "MGMT_USER"),
        ("text", "MGMT_PASSWORD"),
    ],
)
def test_wrong_kind_is_a_mistake_of_the_program(read_as: str, name: str) -> None:
    with pytest.raises(TypeError, match=name):
        getattr(resolve("v7000", NO_FILE, datastore=SAN), read_as)(name)


def test_common_settings_need_no_datastore(tmp_path: Path) -> None:
    settings = resolve(
        "common", conf(tmp_path, "[sanstone]\nFRONTEND = front\n[hosts]\nSSH_OPTIONS=-4\n"), datastore={}
    )
    assert settings.text("FRONTEND") == "front"
    assert settings.words("SSH_OPTIONS") == ("-4",)
    assert "MGMT" not in settings


def test_unknown_driver_is_refused_with_those_there_are() -> None:
    with pytest.raises(NotSupportedError, match="v7000"):
        resolve("nosuch", NO_FILE, datastore={})


NAMES = st.one_of(
    st.sampled_from([*KNOWN, "NAME", "ID"]),
    st.text(max_size=12),
    st.sampled_from(sorted(KNOWN)).map(lambda name: name.replace("_", "")),
)
VALUES = st.one_of(
    st.text(max_size=30),
    st.text(alphabet=string.printable, max_size=30),
    st.integers().map(str),
    st.sampled_from([text for case in CASES.values() for text in (*case.good, *case.bad)]),
    st.none(),
    st.just({"A": "b"}),
)
TEMPLATES = st.dictionaries(NAMES, VALUES, max_size=12)


@given(datastore=TEMPLATES, image=st.none() | TEMPLATES)
@example(datastore={"MGMT": None}, image={"MGMT": {"A": "b"}})
def test_any_template_is_resolved_or_refused_with_a_reason(
    datastore: dict[str, str], image: dict[str, str] | None
) -> None:
    result = outcome(lambda: resolve("v7000", NO_FILE, datastore=datastore, image=image))
    assert explains_itself(result)
    assert isinstance(result, SanstoneError) or result.text("MGMT")
