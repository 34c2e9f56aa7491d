"""The command line: ``python -m cifarkit train | generate | explain | lr-find | report | doctor``.

Each command is a few calls of the library. It ends with 0; with 1 after an error, which is told on stderr; with 2 if
the command or a flag is unknown; with 130 after Ctrl-C.
"""

from __future__ import annotations

import argparse
import difflib
import sys
from collections.abc import Sequence

from cifarkit.commands import doctor, explain, generate, lr_find, report, train

_COMMANDS = {
    "train": train,
    "generate": generate,
    "explain": explain,
    "lr-find": lr_find,
    "report": report,
    "doctor": doctor,
}


def build_parser() -> argparse.ArgumentParser:
    """Make the parser of all commands."""
    from cifarkit import __version__

    summary = "Train, generate and explain small images. Flags of a command: python -m cifarkit COMMAND --help"
    parser = argparse.ArgumentParser("python -m cifarkit", description=summary)
    parser.add_argument("--version", action="version", version=f"cifarkit {__version__}")
    parser.add_argument("--traceback", action="store_true", help="show where in the code an error was raised")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for name, module in _COMMANDS.items():
        words = (module.__doc__ or "").strip()
        form = argparse.RawDescriptionHelpFormatter
        own = commands.add_parser(name, help=words.splitlines()[0], description=words, formatter_class=form)
        module.add_flags(own)
        own.set_defaults(run=module.run)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code; arguments of None are those of the process."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if hint := _hint(given):
        print(hint, file=sys.stderr)
        return 2
    try:
        chosen = build_parser().parse_args(given)
    except SystemExit as end:  # argparse has printed help, a version or what is wrong
        return end.code if isinstance(end.code, int) else 2
    try:
        code: int = chosen.run(chosen)
        return code
    except (ValueError, TypeError, OSError, ImportError, RuntimeError, MemoryError) as error:
        if chosen.traceback:
            raise
        print(f"error: {_words_of(error)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def _words_of(error: BaseException) -> str:
    """Return the message of an error; PyTorch's may have many lines, and Python's of a full memory has none."""
    words = " ".join(str(error).split()) if isinstance(error, RuntimeError) else str(error)
    return words or type(error).__name__


def _hint(given: Sequence[str]) -> str | None:
    """Say what was meant by a command that does not exist; None if it does."""
    name = next((word for word in given if not word.startswith("-")), None)
    if name is None or name in _COMMANDS:
        return None
    near = difflib.get_close_matches(name.lower().replace("_", "-"), _COMMANDS, 1, 0.5)
    meant = f"did you mean {near[0]!r}? " if near else ""
    return f"error: there is no command {name!r}; {meant}There are {', '.join(_COMMANDS)}"
