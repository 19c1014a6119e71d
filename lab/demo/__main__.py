# SPDX-License-Identifier: Apache-2.0
"""``make demo``: SYSTEM=driver, IMAGE=path or URL of the image to import, ONCE=1 to end by itself."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import tempfile
import threading
from pathlib import Path

from lab.demo.screen import Screen
from lab.demo.story import Story, StoryError
from lab.systems import ALL_ARRAYS

_TRUE = ("1", "yes", "true", "on")


def main() -> int:
    """Show the main job, then stay until Ctrl-C unless ONCE says otherwise; leave nothing behind."""
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    screen = Screen()
    system = os.environ.get("SYSTEM") or "v7000"
    if system not in ALL_ARRAYS:
        known = ", ".join(ALL_ARRAYS)
        print(f"SYSTEM={system} is not there; the demonstration knows {known}.", file=sys.stderr)
        return 2
    folder = Path(tempfile.mkdtemp(prefix="sanstone-demo-"))
    try:
        with Story(screen, folder, system=system, image=os.environ.get("IMAGE") or None) as story:
            story.tell()
            if os.environ.get("ONCE", "").lower() not in _TRUE:
                story.invite()
                threading.Event().wait()
    except KeyboardInterrupt:
        screen.line()
        screen.line("stopped; array, hosts and OpenNebula are gone, and nothing is left behind")
        return 0
    except StoryError as err:
        print(f"\n  {err}", file=sys.stderr)
        return 1
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
