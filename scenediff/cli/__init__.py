"""The command line: `scenediff COMMAND --help` tells each command's options.

A wrong input ends with exit code 2 and one line on stderr. Commands live in modules of their own that are
imported when they run, as torch alone takes seconds.
"""

from __future__ import annotations

import importlib
import signal
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from scenediff.cli.errors import UserError, one_line

INTERRUPTED = 130  # the shell's code for Ctrl-C


@dataclass(frozen=True)
class Command:
    """One command: its line of help, and the module and dataclass that carry it out."""

    summary: str
    module: str
    config: str


COMMANDS = {
    "sample": Command("sample 3D scenes from a photo", "scenediff.cli.sample", "Sample"),
    "render": Command("film a sampled scene", "scenediff.cli.render", "Render"),
    "export": Command("write a scene for other programs", "scenediff.cli.export", "Export"),
    "doctor": Command("tell what is wrong with a 3D file", "scenediff.cli.doctor", "Doctor"),
    "report": Command("show a run as one HTML page", "scenediff.cli.report", "Report"),
    "view": Command("walk through a run in the browser", "scenediff.cli.view", "View"),
    "invert": Command("sample images that contain a patch", "scenediff.cli.invert", "Invert"),
    "train rooms": Command("train the model of rooms", "scenediff.cli.train", "TrainRooms"),
    "data rooms": Command("render a data set of rooms", "scenediff.cli.data", "DataRooms"),
    "train generator": Command(
        "train a StyleGAN2 generator", "scenediff.cli.train_inversion", "TrainGenerator"
    ),
    "train inversion": Command(
        "train what inverts a generator", "scenediff.cli.train_inversion", "TrainInversion"
    ),
    "data furniture": Command(
        "render pictures of furniture", "scenediff.cli.data_furniture", "DataFurniture"
    ),
    "data assets": Command("build the pack of furniture for rooms", "scenediff.cli.data", "DataAssets"),
    "eval rooms": Command("measure a model on rendered rooms", "scenediff.cli.evaluate", "EvalRooms"),
    "eval capture": Command("measure a model on posed photos", "scenediff.cli.evaluate", "EvalCapture"),
    "eval stereo": Command("measure a model on a real stereo pair", "scenediff.cli.evaluate", "EvalStereo"),
    "eval inversion": Command(
        "measure the inversion of a generator", "scenediff.cli.evaluate_inversion", "EvalInversion"
    ),
    "motion": Command("sample how a photo could move on", "scenediff.cli.motion", "Motion"),
    "data video": Command("keep the frames of clips in one file", "scenediff.cli.motion", "DataVideo"),
    "train motion": Command("train the model of motion", "scenediff.cli.train_motion", "TrainMotion"),
    "eval motion-posterior": Command(
        "measure sampled motions against a known posterior", "scenediff.cli.train_motion",
        "EvalMotionPosterior",
    ),
    "eval motion-video": Command(
        "measure sampled motions on held-out video", "scenediff.cli.train_motion", "EvalMotionVideo"
    ),
    "convert": Command("read a released checkpoint", "scenediff.cli.convert", "Convert"),
    "bench rasterizer": Command("measure how fast rooms render", "scenediff.cli.bench", "BenchRasterizer"),
    "bench training": Command("measure how fast the model trains", "scenediff.cli.bench", "BenchTraining"),
    "bench paper-scale": Command(
        "time the full-size model", "scenediff.cli.bench_paper_scale", "BenchPaperScale"
    ),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit code: 0, 2 for a wrong input, 130 when interrupted."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        with _sigterm_as_interrupt(), warnings.catch_warnings():
            if not sys.warnoptions:
                warnings.simplefilter("ignore")
            _run(arguments)
    except UserError as error:
        sys.stderr.write(f"scenediff: error: {one_line(error)}\n")
        return 2
    except KeyboardInterrupt:
        sys.stderr.write("scenediff: interrupted\n")
        return INTERRUPTED
    return 0


def _run(arguments: list[str]) -> None:
    name = " ".join(arguments[:2]) if " ".join(arguments[:2]) in COMMANDS else " ".join(arguments[:1])
    if name in COMMANDS:
        from scenediff.cli.memory import keep_freed_memory
        from scenediff.cli.parsing import parse

        command = COMMANDS[name]
        config = getattr(importlib.import_module(command.module), command.config)
        options = parse(config, arguments[len(name.split()) :], f"scenediff {name}")
        if options is not None:
            keep_freed_memory()
            options.run()
    elif name == "--version":
        from importlib.metadata import version

        sys.stdout.write(f"scenediff {version('scenediff')}\n")
    else:
        _overview(arguments)


def _overview(arguments: list[str]) -> None:
    """Help on all commands or on those of one group; an error for anything else."""
    group = "" if not arguments or arguments[0] in ("-h", "--help") else arguments[0]
    members = {name: command for name, command in COMMANDS.items() if not group or name.split()[0] == group}
    rest = arguments[1:] if group else arguments
    if not members:
        raise UserError(f"no command {group!r}: choose one of {', '.join(COMMANDS)}")
    if rest and rest[0] not in ("-h", "--help"):
        raise UserError(f"no command {group} {rest[0]!r}: choose one of {', '.join(members)}")
    if group and not rest:
        raise UserError(f"{group} needs to know what: choose one of {', '.join(members)}")
    lines = [f"  {name:<18}{command.summary}" for name, command in members.items()]
    usage = f"usage: scenediff {group + ' ' if group else ''}COMMAND [OPTIONS]"
    hint = "scenediff COMMAND --help tells a command's options, scenediff --version the version."
    sys.stdout.write("\n".join([usage, "", "Samples 3D scenes from one photo.", "", *lines, "", hint, ""]))


@contextmanager
def _sigterm_as_interrupt() -> Iterator[None]:
    """Lets a terminated run clean up like an interrupted one."""

    def interrupt(signum: int, frame: object) -> None:
        raise KeyboardInterrupt

    try:
        previous = signal.signal(signal.SIGTERM, interrupt)
    except ValueError:  # not the main thread: signals are somebody else's
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)
