# SPDX-License-Identifier: Apache-2.0
"""One lab of virtual machines for all tests of this folder: an array and two hosts with a real kernel.

A module that uses it says ``pytestmark = pytest.mark.real(*PROGRAMS)`` with the names of ``lab.vm.lab``. What
a test changes it puts back, because the machines are the same for the next one; see ``whole_lab``.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import pytest

from lab.vm.errors import VMError
from lab.vm.image import Image, build_image, can_build_soon, find_image
from lab.vm.lab import Lab
from tests.kernel.scene import Scene


@pytest.fixture(scope="session")
def image() -> Image:
    """Return the machines' image. A test run makes the layer that takes seconds, not that of minutes."""
    if found := find_image():
        return found
    if not can_build_soon():
        reason = "the image of the lab's machines is not there: make ready-for-check (as root)"
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(reason)
    return build_image()


@pytest.fixture(scope="session")
def lab(
    image: Image, tmp_path_factory: pytest.TempPathFactory, lasting: list[Callable[[], set[int]]]
) -> Iterator[Lab]:
    """Boot ``array1``, ``node1`` and ``node2``, once for the whole run of tests."""
    machines = Lab(tmp_path_factory.mktemp("lab"))
    lasting.append(machines.running_ids)
    with machines:
        yield machines


@pytest.fixture
def whole_lab(lab: Lab) -> Iterator[Lab]:
    """Return the lab, and afterwards have all machines running and all cables plugged in again."""
    yield lab
    for machine in lab.machines.values():
        for network, peer in sorted(machine.unplugged):
            machine.unplugged.discard((network, peer))
            if machine.is_running:
                machine.qemu.set_link(network, peer, True)
        if machine.is_running:
            machine.go_on()
        else:
            machine.boot()
    for host in lab.hosts.values():
        if host.ssh("true").code:
            raise VMError(f"{host.name} does not answer after the test.")


@pytest.fixture(scope="session")
def scene(lab: Lab) -> Scene:
    return Scene(lab)


@pytest.fixture
def clean(scene: Scene) -> Iterator[None]:
    """Fail a test that leaves a disk, map, session, record, name, link or LUN, and take it away."""
    yield
    found: list[str] = []
    try:
        found = scene.leftovers()
    except VMError as err:
        found = [str(err)]
    if found:
        scene.sweep()
        pytest.fail("left behind: " + "; ".join(found), pytrace=False)
