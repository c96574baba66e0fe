"""`python -m remote init [DIR]`. The tasks themselves are Fabric's: `fab --list`."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from remote.errors import RemoteError
from remote.project.init import init
from remote.screen.display import Display
from remote.screen.language import choose_language


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m remote", description="The tasks themselves are Fabric's: fab --list"
    )
    commands = parser.add_subparsers(dest="command", required=True)
    about = (
        "put a short fabfile.py, a commented fabric.yaml and run_progress.py into a project of your"
        " own; changes no file that is there"
    )
    one = commands.add_parser("init", help=about, description=about)
    one.add_argument(
        "directory", nargs="?", type=Path, default=Path(), help="the project (default: here)"
    )
    one.add_argument(
        "--command",
        default="",
        dest="runs",
        help='what trains, e.g. "python train.py --epochs 10" (default: looked for)',
    )
    one.add_argument(
        "--results",
        default="",
        help="what comes back, e.g. checkpoints,logs (default: all that it writes)",
    )
    options = parser.parse_args()
    choose_language(os.environ.get("FABRIC_REMOTE_LANGUAGE") or "auto")
    display = Display()
    try:
        return init(options.directory, options.runs, options.results, display)
    except RemoteError as error:
        display.error(error)
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
