"""Write one HTML page about a run, or about several side by side.

python -m cifarkit report runs/<one> runs/<another>
"""

from __future__ import annotations

import argparse


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the command."""
    parser.add_argument("run_folders", metavar="RUN", nargs="+", help="run folders; the page goes into the first")
    parser.add_argument("--path", help="the page, ending in .html")
    parser.add_argument("--title", help="its heading")


def run(args: argparse.Namespace) -> int:
    """Write the page and say where it is."""
    from cifarkit import reporting

    print(reporting.report(*args.run_folders, path=args.path, title=args.title))
    return 0
