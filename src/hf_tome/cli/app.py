"""The command line `hf-tome`: results on standard output, everything else on standard error."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import wraps
from typing import Any

import typer

from ..version import __version__
from .commands import bench, card, demo, env, eval, export, generate, show, sweep, tune
from .extras import advice
from .groups import GroupedCommand

COMMANDS: dict[str, tuple[Callable[..., None], str]] = {
    "demo": (demo.demo_command, demo.EXAMPLE),
    "eval": (eval.eval_command, eval.EXAMPLE),
    "sweep": (sweep.sweep_command, sweep.EXAMPLE),
    "generate": (generate.generate_command, generate.EXAMPLE),
    "bench": (bench.bench_command, bench.EXAMPLE),
    "tune": (tune.tune_command, tune.EXAMPLE),
    "card": (card.card_command, card.EXAMPLE),
    "show": (show.show_command, show.EXAMPLE),
    "export": (export.export_command, export.EXAMPLE),
    "env": (env.env_command, env.EXAMPLE),
}
"""Name of a command -> its function and the worked example in its help."""

app = typer.Typer(
    name="hf-tome",
    help="Merge tokens in Hugging Face vision transformers, and see what that costs and saves.",
    add_completion=False,
    rich_markup_mode=None,
)


def _quietly(command: Callable[..., None]) -> Callable[..., None]:
    """Silence transformers and the Hub's client before a command runs; help and wrong usage do not import them."""

    @wraps(command)
    def run_command(**options: Any) -> None:
        _quieten_libraries(debug=options.get("debug", False))
        command(**options)

    return run_command


for _name, (_function, _example) in COMMANDS.items():
    app.command(_name, cls=GroupedCommand, epilog=_example)(_quietly(_function))


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"hf_tome {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: bool = typer.Option(False, "--version", callback=_show_version, is_eager=True, help="Show the version."),
) -> None:
    pass


INTERRUPTED = 130
"""The exit status of a command that was interrupted, as in a shell."""
RESUMES: dict[str, tuple[str, ...]] = {"eval": ("--out",), "generate": (), "sweep": (), "tune": ()}
"""The commands that resume an interrupted run, and the options that they need for it."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit.

    The status is 0 on success; 2 where the arguments cannot be read, or an option does not apply; 130 when
    interrupted or terminated; and 1 on any other error, or when nobody reads the output any more.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    sys.exit(run(arguments))


def run(arguments: list[str]) -> int:
    """Run one command and return its exit status; without `--debug` an error is one line on standard error."""
    debug = "--debug" in arguments
    _quieten(debug)
    try:
        with _terminated_as_interrupted():
            status = int(app(arguments or ["--help"], standalone_mode=False) or 0)
    except BrokenPipeError:
        # The reader of the pipe has gone (`| head`); Python would complain again while it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        status = INTERRUPTED
    except Exception as error:
        if debug:
            raise
        print(f"error: {_one_line(error)}", file=sys.stderr)
        return getattr(error, "exit_code", 1)
    if status == INTERRUPTED:  # typer catches a KeyboardInterrupt itself, and returns this
        print(_interrupted(arguments), file=sys.stderr)
    return status


@contextmanager
def _terminated_as_interrupted() -> Iterator[None]:
    """Let SIGTERM end a command as Ctrl-C does, with the same line and what was finished kept."""
    if threading.current_thread() is not threading.main_thread():  # no other may set a handler
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _interrupted(arguments: Sequence[str]) -> str:
    """Return the line for a run that was interrupted; it says whether the same command would resume it."""
    given = {argument.partition("=")[0] for argument in arguments}
    needed = RESUMES.get(next(iter(arguments), ""))
    if needed is None or not given.issuperset(needed):
        return "interrupted"
    return f"interrupted; the same command{', without --restart,' * ('--restart' in given)} resumes where it stopped"


def _one_line(error: Exception) -> str:
    """Return the message alone where it was written for the user, else after the kind of error."""
    format_message = getattr(error, "format_message", None)  # wrong usage, found by typer
    text = " ".join((format_message() if format_message else str(error)).split())
    if not text:
        return f"{type(error).__name__} (hf_tome {__version__}; --debug shows where)"
    if format_message or isinstance(error, (ValueError, OSError, ImportError)):
        return ". ".join(filter(None, (text, advice(error))))
    return f"{type(error).__name__}: {text} (hf_tome {__version__}; --debug shows where, an issue needs `hf-tome env`)"


def _quieten(debug: bool) -> None:
    """Leave standard error to progress and errors: libraries may log there only on a terminal or with `--debug`."""
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")  # not imported yet
    logging.basicConfig(level=logging.WARNING if debug or sys.stderr.isatty() else logging.ERROR, format="%(message)s")
    if not debug:
        warnings.simplefilter("ignore")


def _quieten_libraries(debug: bool) -> None:
    """Switch off progress bars and warnings of transformers, torch and the Hub's client."""
    import torch  # noqa: F401 (importing it sets the level of its loggers, so it goes first)
    from huggingface_hub.utils import disable_progress_bars
    from transformers.utils import logging as transformers_logging

    disable_progress_bars()
    transformers_logging.disable_progress_bar()
    if not debug:
        transformers_logging.set_verbosity_error()
        logging.getLogger("torch").setLevel(logging.ERROR)


if __name__ == "__main__":
    main()
