# SPDX-License-Identifier: Apache-2.0
"""Run the stand-in by itself: ``python -m lab.oned --remotes DIR --datastores DIR``."""

from __future__ import annotations

import argparse
import signal
import sys
import threading
from pathlib import Path

from lab.oned.config import OnedConfig
from lab.oned.hypervisor import ScriptHypervisor
from lab.oned.server import Oned


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m lab.oned", description="A stand-in for OpenNebula's oned."
    )
    parser.add_argument("--remotes", type=Path, required=True, help="directory with datastore/ and tm/")
    parser.add_argument("--datastores", type=Path, required=True, help="DATASTORE_LOCATION")
    parser.add_argument("--vms", type=Path, help="files of VMs (default: vms beside the datastores)")
    parser.add_argument("--listen", default="127.0.0.1:2633", help="address:port of the XML-RPC interface")
    parser.add_argument("--hostname", default="frontend", help="name of the front-end in driver arguments")
    parser.add_argument("--host", action="append", default=[], help="a host (more than once)")
    parser.add_argument("--user", action="append", default=[], metavar="NAME:PASSWORD", help="a plain user")
    parser.add_argument("--encrypted", action="append", default=[], help="a DATASTORE_ENCRYPTED_ATTR")
    parser.add_argument("--vmm", action="store_true", help="run remotes/vmm scripts instead of nothing")
    parser.add_argument("--monitor", type=float, metavar="SECONDS", help="monitor datastores periodically")
    parser.add_argument(
        "--state", type=Path, help="file to load the objects from, and to save them to at the end"
    )
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Serve until SIGTERM or SIGINT comes."""
    options = _parser().parse_args(arguments)
    address, _, port = options.listen.rpartition(":")
    remotes = options.remotes.resolve()
    oned = Oned(
        OnedConfig(
            remotes=remotes,
            datastores=options.datastores.resolve(),
            vms=(options.vms or options.datastores.parent / "vms").resolve(),
            hostname=options.hostname,
            hosts=tuple(options.host) or ("h1", "h2"),
            users=dict(user.partition(":")[::2] for user in options.user),
            listen=(address, int(port)),
            ds_encrypted_attrs=tuple(options.encrypted),
            monitor_interval=options.monitor,
            hypervisor=ScriptHypervisor(remotes) if options.vmm else None,
        )
    )
    if options.state is not None and options.state.exists():
        oned.load(options.state)
    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
    with oned:
        print(oned.endpoint, flush=True)
        ended.wait()
    if options.state is not None:
        oned.save(options.state)
    return 0


if __name__ == "__main__":
    sys.exit(main())
