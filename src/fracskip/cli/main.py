"""Commands, options, exit codes.

Exit codes: 0 done; 2 bad usage or bad input, with one line on stderr; 1 a fault of ours, with its
traceback; 130 stopped with Ctrl-C (a training run is saved and can be resumed).
"""

from __future__ import annotations

import argparse
import importlib
import io
import math
import os
import sys
import traceback
import warnings
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, NoReturn, TextIO

from fracskip import __version__
from fracskip.errors import FracskipError
from fracskip.text import visible

DONE, FAULT, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130
# Where a command is, if not among the others.
_MODULES = {
    "cascade": "fracskip.cli.cascade",
    "quantize": "fracskip.cli.quantize",
    "tune": "fracskip.cli.cascade",
}


class _Parser(argparse.ArgumentParser):
    network: argparse.Action | None = None

    def error(self, message: str) -> NoReturn:
        _complain(f"{message} (see {self.prog} --help)", self.prog)
        self.exit(BAD_INPUT)

    def _print_message(self, message: str, file: Any = None) -> None:
        (file or sys.stderr).write(message)  # argparse itself hides that it can't

    def takes_network(self, name: str, text: str) -> None:
        """Adds the NETWORK argument, and the options that name a plain network instead."""
        self.network = self.add_argument("checkpoint", metavar=name, help=text)
        own = self.add_argument_group(f"a plain network, in place of {name}")
        own.add_argument("--model", metavar="NAME", help="torchvision/NAME, timm/NAME, or resnetD")
        own.add_argument("--weights", metavar="FILE", help="its weights (.safetensors)")
        own.add_argument("--size", type=_positive, metavar="PIXELS", help="of its square images")

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As in argparse; where --model is given, there is no NETWORK among the words."""
        named = any(len(w) > 2 and "--model".startswith(w.split("=")[0]) for w in args or ())
        if self.network is not None and named:
            self.network.nargs = argparse.SUPPRESS
        return super().parse_known_args(args, namespace)


def _complain(message: str, who: str = "fracskip") -> None:
    """One line on stderr."""
    with suppress(OSError):  # there is nobody left to tell
        print(f"{who}: error: {visible(' '.join(message.split()))}", file=sys.stderr)


def _warn(message: Warning | str, *_: Any, **__: Any) -> None:
    """What Python does with a warning: one line, not where in the code it was raised."""
    with suppress(OSError):
        print(f"fracskip: warning: {visible(' '.join(str(message).split()))}", file=sys.stderr)


def _show_fault() -> int:
    for line in traceback.format_exc().splitlines():
        print(visible(line), file=sys.stderr)
    return FAULT


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is given, a whole number from 1 is needed")
    return int(text)


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is given, a whole number from 0 is needed")
    return int(text)


def _share(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(
            f"{text!r} is given, a share above 0 and up to 1 is needed (0.02 is 2%)"
        )
    return value


def _budget(text: str) -> float | tuple[float, float]:
    parts = [_share(part) for part in text.split(",")]
    if len(parts) == 1:
        return parts[0]
    if len(parts) > 2 or parts[0] > parts[1]:
        raise argparse.ArgumentTypeError(
            f"{text!r} is given, a share or the smallest and the largest are needed: 0.005,0.06"
        )
    return parts[0], parts[1]


def _epochs(text: str) -> tuple[int, ...]:
    parts = tuple(_positive(part) for part in text.split(","))
    if len(parts) not in (1, 3):
        raise argparse.ArgumentTypeError(
            f"{text!r} is given, one number or three are needed: 25 or 25,3,6"
        )
    return parts


def build_parser() -> argparse.ArgumentParser:
    """The whole command line; tests pin it."""
    parser = _Parser(
        prog="fracskip",
        description="Dynamic fractional skipping: every image has its own allocation of skipped, "
        "quantised and full blocks.",
        epilog="example: fracskip demo",
    )
    parser.add_argument("--version", action="version", version=f"fracskip {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)

    def command(name: str, text: str, example: str) -> _Parser:
        return commands.add_parser(
            name, help=text, description=text, epilog=f"example: fracskip {example}"
        )

    network = "a published network's name, a checkpoint, or a bundle (.fsk)"
    budget = "computation share to aim at, such as 0.02, if the network takes one"
    command("demo", "Classify the bundled images with the bundled network, and report.", "demo")

    train = command(
        "train",
        "Run a recipe, or make a network by name dynamic on your images: backbone, options, gates, "
        "allocations. The run's folder is runs/NAME.",
        "train --model torchvision/resnet18 --weights r18.safetensors --data folder:photos",
    )
    train.add_argument(
        "recipe", metavar="RECIPE", nargs="?", help="a .toml file, or a run's recipe.json"
    )
    train.add_argument("--resume", action="store_true", help="go on with the run in its folder")
    train.add_argument(
        "--set",
        action="extend",
        nargs="+",
        default=[],
        metavar="KEY=VALUE",
        dest="overrides",
        help="override the recipe's keys: --set joint.epochs=4 joint.target=0.05",
    )
    own = train.add_argument_group("without a recipe")
    own.add_argument(
        "--model", metavar="NAME", help="torchvision/NAME, timm/NAME, or resnetD for small images"
    )
    own.add_argument(
        "--weights",
        metavar="FILE",
        help="of the plain network (.safetensors); without, --set backbone.epochs=N trains it",
    )
    own.add_argument("--data", metavar="NAME", help="folder:PATH, or as in eval")
    own.add_argument(
        "--options", metavar="SET", help="low (the default), cpu, ..., or a list: skip,4,8"
    )
    own.add_argument(
        "--budget",
        type=_budget,
        metavar="LOW,HIGH",
        help="computation shares to serve, by default 0.005,0.06; or one share",
    )
    own.add_argument(
        "--epochs",
        type=_epochs,
        metavar="N",
        help="of all options' weights; gates and allocations in proportion, or given too: 25,3,6",
    )
    own.add_argument("--size", type=_positive, metavar="PIXELS", help="of the square images")

    evaluate = command(
        "eval",
        "Measure a network's accuracy and cost on a data set.",
        "eval bundled --data cifar10 --json record.json",
    )
    evaluate.takes_network("NETWORK", network)
    evaluate.add_argument(
        "--data",
        required=True,
        metavar="NAME",
        help="cifar10, cifar100, fashion-mnist, sample or folder:PATH",
    )
    evaluate.add_argument("--split", choices=("train", "test"), default="test")
    evaluate.add_argument(
        "--limit", type=_positive, metavar="N", help="use N images, evenly spaced in the set"
    )
    evaluate.add_argument("--json", metavar="FILE", help="write the record here")
    evaluate.add_argument("--budget", type=_share, metavar="B", help=budget)
    evaluate.add_argument(
        "--examples",
        type=_count,
        default=12,  # config.EXAMPLES, which takes pydantic to read
        metavar="N",
        help="how many of the cheapest and of the dearest images the record names",
    )

    curve = command(
        "sweep",
        "Measure a network that takes a budget over the whole range that it reaches.",
        "sweep network.fsk --data cifar10 --json curve.json",
    )
    curve.takes_network("NETWORK", network)
    curve.add_argument("--data", required=True, metavar="NAME", help="as in eval")
    curve.add_argument("--split", choices=("train", "test"), default="test")
    curve.add_argument(
        "--limit", type=_positive, metavar="N", help="use N images, evenly spaced in the set"
    )
    curve.add_argument(
        "--budgets", type=_share, nargs="+", default=[], metavar="B", help="by default nine"
    )
    curve.add_argument("--json", metavar="FILE", help="write the record here")

    predict = command(
        "predict",
        "Classify image files, each by its own allocation.",
        "predict bundled cat.jpg ship.png",
    )
    predict.takes_network("NETWORK", network)
    predict.add_argument("images", metavar="IMAGE", nargs="+", help="an image file, or a folder")
    predict.add_argument("--budget", type=_share, metavar="B", help=budget)
    predict.add_argument("--json", metavar="FILE", help="write the predictions here")

    export = command(
        "export",
        "Write a network for deployment: a bundle for fracskip's engines, or ONNX.",
        "export bundled --to network.fsk",
    )
    export.takes_network("CHECKPOINT", "a published network's name or a file")
    export.add_argument(
        "--to", required=True, metavar="FILE", help="ends in .fsk (a bundle) or .onnx"
    )

    quantize = command(
        "quantize",
        "Quantise a trained network after training: its weights and some images, no labels.",
        "quantize --model torchvision/resnet18 --weights r18.safetensors --data folder:photos "
        "--to r18.fsk",
    )
    quantize.takes_network("CHECKPOINT", "of a plain network: its options are 'full' alone")
    quantize.add_argument(
        "--data",
        required=True,
        metavar="NAME",
        help="as in eval: training images to calibrate on, of any classes",
    )
    quantize.add_argument(
        "--images", type=_positive, default=256, metavar="N", help="to calibrate on, evenly spaced"
    )
    quantize.add_argument(
        "--options",
        default="8",
        metavar="SET",
        help="of residual blocks, 8 by default; all else is executed at 8 bits",
    )
    quantize.add_argument(
        "--to", required=True, metavar="FILE", help="ends in .fsk, .onnx or .safetensors"
    )

    cascade = command(
        "cascade",
        "Put trained networks together: easy images end at a small one, hard ones go on to a large "
        "one. Thresholds for every budget are chosen on labelled images that no member has seen.",
        "cascade small.fsk large.fsk --data folder:photos --to photos.fsk",
    )
    cascade.add_argument("members", metavar="NETWORK", nargs="+", help=f"{network}; two to four")
    cascade.add_argument("--data", required=True, metavar="NAME", help="as in eval")
    cascade.add_argument("--split", choices=("train", "test"), default="test")
    cascade.add_argument(
        "--limit", type=_positive, metavar="N", help="use N images, evenly spaced in the set"
    )
    cascade.add_argument("--to", required=True, metavar="FILE", help="ends in .fsk or .onnx")

    tune = command(
        "tune",
        "Time a bundle's members, or a network's options, on this machine, and say its operating "
        "points in microseconds. The times are kept in the cache.",
        "tune photos.fsk",
    )
    tune.add_argument("bundle", metavar="FILE", help="a bundle (.fsk)")

    bench = command(
        "bench",
        "Time a network beside other engines that run its plain backbone, in one interleaved run.",
        "bench bundled --engines native,onnxruntime,openvino --backbone b.safetensors",
    )
    bench.takes_network("NETWORK", network)
    bench.add_argument(
        "--engines",
        metavar="NAMES",
        help="comma-separated: native, portable, torch, torch-compile, onnxruntime, openvino; by "
        "default all that are installed, but portable",
    )
    bench.add_argument(
        "--threads", type=_positive, default=1, metavar="N", help="threads for one image"
    )
    bench.add_argument("--isa", metavar="NAME", help="the native engine's instruction set")
    bench.add_argument(
        "--images",
        type=_positive,
        metavar="N",
        help="test images, evenly spaced: by default 2000, with --profile 20",
    )
    bench.add_argument("--rounds", type=_positive, default=10, metavar="N")
    bench.add_argument("--data", metavar="NAME", help="by default what it was trained on")
    bench.add_argument(
        "--backbone",
        metavar="FILE",
        help="the plain network for the other engines; by default the network's own weights at "
        "full precision",
    )
    bench.add_argument(
        "--frontier",
        nargs="+",
        default=[],
        metavar="FILE",
        help="further plain networks, at 8 bits in the fastest of the other engines",
    )
    bench.add_argument(
        "--profile",
        action="store_true",
        help="time each step of the native engine instead: kernels, GMAC/s, share of the roofline",
    )
    bench.add_argument("--json", metavar="FILE", help="write the record here")
    bench.add_argument("--figure", metavar="FILE", help="draw accuracy over latency (.svg)")

    report = command(
        "report",
        "Draw records of evaluations and runs as one self-contained HTML file.",
        "report runs/dfs_resnet38_cascade record.json --out report.html",
    )
    report.add_argument(
        "records", metavar="RUN_OR_RECORD", nargs="+", help="a run's folder or a JSON record"
    )
    report.add_argument("--out", default="fracskip-report.html", metavar="FILE")
    report.add_argument(
        "--data",
        metavar="NAME",
        help="a data set to take pictures of images from, beside the bundled one and the cache",
    )

    data = command("data", "Fetch a data set into the cache, or verify it there.", "data cifar10")
    data.add_argument("name", metavar="NAME", help="cifar10, cifar100 or fashion-mnist")
    data.add_argument(
        "--from", dest="source", metavar="DIR", help="take the files from this folder instead"
    )

    doctor = command(
        "doctor", "Say what this machine and this installation can do.", "doctor network.fsk"
    )
    doctor.add_argument(
        "bundle",
        metavar="FILE",
        nargs="?",
        help="time the blocks of this network, a bundle (.fsk), at each width and say no more",
    )
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command.

    Args:
        arguments: The words after `fracskip`; those of the process by default.

    Returns:
        The exit code.
    """
    _open_streams()
    with warnings.catch_warnings():
        warnings.showwarning = _warn
        code = DONE
        try:
            code = _run(arguments)
            sys.stdout.flush()  # what it can't take fails here, not when Python ends
        except BrokenPipeError:
            # Whoever read our output has left.
            _discard_output()
        except OSError as error:
            # The system refuses a file, and whoever asked for it says no more about it.
            _discard_output()
            where = error.filename or "standard output, or another open file"
            _complain(f"{where}: {error.strerror or error}")
            code = BAD_INPUT
        return code


def _run(arguments: Sequence[str] | None) -> int:
    try:
        options = build_parser().parse_args(arguments)
    except SystemExit as end:
        return int(end.code or DONE)
    try:
        commands = importlib.import_module(_MODULES.get(options.command, "fracskip.cli.commands"))
        code: int = getattr(commands, f"run_{options.command}")(options)
        return code
    except FracskipError as error:
        _complain(str(error))
        return BAD_INPUT
    except ModuleNotFoundError as error:
        if error.name != "torch":
            return _show_fault()
        _complain(f"fracskip {options.command} needs torch: pip install 'fracskip[train]'")
        return BAD_INPUT
    except KeyboardInterrupt:
        print("fracskip: interrupted", file=sys.stderr)
        return INTERRUPTED
    except OSError:
        raise  # no fault of ours
    except Exception:
        code = _show_fault()
        print("fracskip: this is a fault of fracskip, please report it", file=sys.stderr)
        return code


def _open_streams() -> None:
    for name in ("stdout", "stderr"):
        stream: TextIO | None = getattr(sys, name)
        if stream is None:  # closed by whoever started us
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))
        elif isinstance(stream, io.TextIOWrapper):
            # File names and our own signs may not fit the terminal's encoding: that is no fault.
            stream.reconfigure(errors="backslashreplace")


def _discard_output() -> None:
    """Gives up standard output if it takes no more: Python would complain again when it ends."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
