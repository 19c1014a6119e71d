# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sanstone.errors import RequestError
from sanstone.names import (
    VolumeName,
    clone_names,
    clone_volume,
    image_volume,
    read_name,
    volatile_volume,
    volume_of_source,
)

IDS = st.integers(0, 10**7)


@given(image=IDS, vm=IDS, disk=IDS)
def test_every_name_reads_back_as_what_it_was_made_from(image: int, vm: int, disk: int) -> None:
    assert read_name(image_volume(image)) == VolumeName(image)
    assert read_name(clone_volume(image, vm, disk)) == VolumeName(image, vm, disk)
    assert read_name(volatile_volume(vm, disk)) == VolumeName(None, vm, disk)


@given(first=st.tuples(IDS, IDS, IDS), second=st.tuples(IDS, IDS, IDS))
def test_two_disks_never_share_a_name(first: tuple[int, int, int], second: tuple[int, int, int]) -> None:
    assert (clone_volume(*first) == clone_volume(*second)) == (first == second)


def test_clones_of_the_old_add_on_are_understood() -> None:
    assert read_name("one-5-snapshot-17") == VolumeName(5, 17, None)
    assert clone_names(5, 17, 0) == ("one-5-17-0", "one-5-snapshot-17")


@pytest.mark.parametrize(
    "name", ["", "one", "one-", "two-5", "one-5-6", "one-5-6-7-8", "one-5-aux", "one-5 ", "one-٣"]
)
def test_other_names_are_not_ours(name: str) -> None:
    assert read_name(name) is None


@pytest.mark.parametrize(
    "source",
    [
        "one-5",
        "frontend:one-5",
        "fe.example.com:one-5",
        "iqn.1986-03.com.ibm:2545.v7000-a.node1.one-5",
        "frontend:iqn.1986-03.com.ibm:2545.v7000-a.node1.one-5",
    ],
)
def test_the_volume_is_found_in_each_form_of_source(source: str) -> None:
    assert volume_of_source(source) == "one-5"


@pytest.mark.parametrize(
    "source", ["", "frontend:", "a b", "x.", "x;y", "$(x)", "one-5\n", "-force", "ä", "a" * 64]
)
def test_a_source_without_a_usable_name_is_refused(source: str) -> None:
    with pytest.raises(RequestError, match="names no volume"):
        volume_of_source(source)
