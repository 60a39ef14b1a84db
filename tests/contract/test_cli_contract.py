"""The command line's surface: commands, options, help, exit codes. Scripts depend on it."""

import argparse
import shlex

import pytest

from fracskip.cli import main
from fracskip.cli.main import BAD_INPUT, DONE, FAULT, INTERRUPTED, build_parser

# A network: a file or a name, or a plain one.
NETWORK = {
    "checkpoint": ("NETWORK", True, 1),
    "--model": ("NAME", False, 1),
    "--weights": ("FILE", False, 1),
    "--size": ("PIXELS", False, 1),
}
# Command -> argument -> (metavar or choices, required, how many).
SURFACE = {
    "demo": {},
    "train": {
        "recipe": ("RECIPE", False, "?"),
        "--resume": (None, False, 0),
        "--set": ("KEY=VALUE", False, "+"),
        "--model": ("NAME", False, 1),
        "--weights": ("FILE", False, 1),
        "--data": ("NAME", False, 1),
        "--options": ("SET", False, 1),
        "--budget": ("LOW,HIGH", False, 1),
        "--epochs": ("N", False, 1),
        "--size": ("PIXELS", False, 1),
    },
    "eval": {
        **NETWORK,
        "--data": ("NAME", True, 1),
        "--split": (("train", "test"), False, 1),
        "--limit": ("N", False, 1),
        "--json": ("FILE", False, 1),
        "--budget": ("B", False, 1),
        "--examples": ("N", False, 1),
    },
    "sweep": {
        **NETWORK,
        "--data": ("NAME", True, 1),
        "--split": (("train", "test"), False, 1),
        "--limit": ("N", False, 1),
        "--budgets": ("B", False, "+"),
        "--json": ("FILE", False, 1),
    },
    "predict": {
        **NETWORK,
        "images": ("IMAGE", True, "+"),
        "--budget": ("B", False, 1),
        "--json": ("FILE", False, 1),
    },
    "export": {
        **NETWORK,
        "checkpoint": ("CHECKPOINT", True, 1),
        "--to": ("FILE", True, 1),
    },
    "quantize": {
        **NETWORK,
        "checkpoint": ("CHECKPOINT", True, 1),
        "--data": ("NAME", True, 1),
        "--images": ("N", False, 1),
        "--options": ("SET", False, 1),
        "--to": ("FILE", True, 1),
    },
    "cascade": {
        "members": ("NETWORK", True, "+"),
        "--data": ("NAME", True, 1),
        "--split": (("train", "test"), False, 1),
        "--limit": ("N", False, 1),
        "--to": ("FILE", True, 1),
    },
    "tune": {"bundle": ("FILE", True, 1)},
    "bench": {
        **NETWORK,
        "--engines": ("NAMES", False, 1),
        "--threads": ("N", False, 1),
        "--isa": ("NAME", False, 1),
        "--images": ("N", False, 1),
        "--rounds": ("N", False, 1),
        "--data": ("NAME", False, 1),
        "--backbone": ("FILE", False, 1),
        "--frontier": ("FILE", False, "+"),
        "--profile": (None, False, 0),
        "--json": ("FILE", False, 1),
        "--figure": ("FILE", False, 1),
    },
    "report": {
        "records": ("RUN_OR_RECORD", True, "+"),
        "--data": ("NAME", False, 1),
        "--out": ("FILE", False, 1),
    },
    "data": {"name": ("NAME", True, 1), "--from": ("DIR", False, 1)},
    "doctor": {"bundle": ("FILE", False, "?")},
}


def commands() -> dict[str, argparse.ArgumentParser]:
    (action,) = (
        action
        for action in build_parser()._actions
        if isinstance(action, argparse._SubParsersAction)
    )
    return dict(action.choices)


def arguments(parser: argparse.ArgumentParser) -> list[argparse.Action]:
    return [action for action in parser._actions if action.dest != "help"]


def test_commands_and_their_arguments() -> None:
    found = {
        name: {
            "/".join(action.option_strings) or action.dest: (
                tuple(action.choices) if action.choices else action.metavar,
                action.required,
                1 if action.nargs is None else action.nargs,
            )
            for action in arguments(parser)
        }
        for name, parser in commands().items()
    }
    assert found == SURFACE
    assert list(found) == list(SURFACE), "the order is that of the help"


def test_defaults() -> None:
    parse = build_parser().parse_args
    plain = {"model": None, "weights": None, "size": None}
    assert vars(parse(["train", "r"])) == {
        "command": "train",
        "recipe": "r",
        "resume": False,
        "overrides": [],
        "model": None,
        "weights": None,
        "data": None,
        "options": None,
        "budget": None,
        "epochs": None,
        "size": None,
    }
    assert vars(parse(["eval", "c", "--data", "d"])) == {
        "command": "eval",
        "checkpoint": "c",
        **plain,
        "data": "d",
        "split": "test",
        "limit": None,
        "json": None,
        "budget": None,
        "examples": 12,
    }
    assert vars(parse(["sweep", "c", "--data", "d"])) == {
        "command": "sweep",
        "checkpoint": "c",
        **plain,
        "data": "d",
        "split": "test",
        "limit": None,
        "budgets": [],
        "json": None,
    }
    assert vars(parse(["predict", "c", "i"])) == {
        "command": "predict",
        "checkpoint": "c",
        **plain,
        "images": ["i"],
        "budget": None,
        "json": None,
    }
    assert vars(parse(["bench", "b"])) == {
        "command": "bench",
        "checkpoint": "b",
        **plain,
        "engines": None,
        "threads": 1,
        "isa": None,
        "images": None,
        "rounds": 10,
        "data": None,
        "backbone": None,
        "frontier": [],
        "profile": False,
        "json": None,
        "figure": None,
    }
    assert parse(["report", "a", "b"]).out == "fracskip-report.html"
    assert vars(parse(["data", "n"])) == {"command": "data", "name": "n", "source": None}


@pytest.mark.parametrize(
    "words",
    [
        ["--set", "a=1", "b=2", "c=3"],
        ["--set", "a=1", "--set", "b=2", "--set", "c=3"],
        ["--set", "a=1", "b=2", "--resume", "--set", "c=3"],
    ],
)
def test_settings_one_after_the_other_or_each_with_its_flag(words: list[str]) -> None:
    parse = build_parser().parse_args
    assert parse(["train", "r.toml", *words]).overrides == ["a=1", "b=2", "c=3"]
    assert parse(["train", "r.toml"]).overrides == [], "one call's settings leaked into the next"


@pytest.mark.parametrize("name", ["", *SURFACE])
def test_help_and_its_example(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    code = main([*name.split(), "--help"])
    out, err = capsys.readouterr()
    assert (code, err) == (0, "")
    assert out.startswith(f"usage: fracskip {name}".rstrip())

    parser = commands()[name] if name else build_parser()
    assert parser.epilog is not None
    example = parser.epilog.removeprefix("example: ")
    assert " ".join(example.split()) in " ".join(out.split())
    program, *words = shlex.split(example)
    assert program == "fracskip"
    # It is a command that works as it stands.
    assert build_parser().parse_args(words).command == (name or "demo")


@pytest.mark.parametrize("name", SURFACE)
def test_every_command_says_what_it_does(name: str) -> None:
    parser = commands()[name]
    assert parser.description
    assert parser.description.endswith(".")


def test_exit_codes() -> None:
    assert (DONE, FAULT, BAD_INPUT, INTERRUPTED) == (0, 1, 2, 130)
