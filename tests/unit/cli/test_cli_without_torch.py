"""Bundles, reports and help need no torch; what needs it says how to get it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fracskip.runtime.engines import instruction_sets

Run = Callable[..., Any]  # conftest.Answer

# None in sys.modules is how Python itself says that a module is not to be had.
WITHOUT_TORCH = """
import sys
sys.modules["torch"] = None
from fracskip.cli import main
try:
    code = main(sys.argv[1:])
finally:
    assert not [name for name in sys.modules if name.startswith("torch.")]
sys.exit(code)
"""


@pytest.mark.parametrize(
    "words",
    [
        ["eval", "net.safetensors", "--data", "sample"],
        ["predict", "net.safetensors", "x.png"],
        ["export", "net.safetensors", "--to", "net.fsk"],
        ["train", "r.toml"],
    ],
    ids=lambda words: words[0],
)
def test_commands_that_need_torch_say_how_to_get_it(
    python: Run, recipe: Path, words: list[str]
) -> None:
    answer = python(WITHOUT_TORCH, *words)
    assert answer.error == f"fracskip {words[0]} needs torch: pip install 'fracskip[train]'"
    assert answer.out == ""


needs_native = pytest.mark.skipif(not instruction_sets(), reason="the native engine is not built")


@needs_native
@pytest.mark.parametrize(
    "words",
    [
        ["eval", "{bundle}", "--data", "folder:{pictures}"],
        ["predict", "{bundle}", "{pictures}/val/red"],
        ["demo"],
        ["doctor"],
        ["bench", "{bundle}", "--profile", "--data", "folder:{pictures}"],
    ],
    ids=lambda words: words[0],
)
def test_bundles_need_no_torch(
    python: Run, words: list[str], bundle_file: Path, pictures: Path
) -> None:
    words = [word.format(bundle=bundle_file, pictures=pictures) for word in words]
    answer = python(WITHOUT_TORCH, *words)
    assert (answer.code, answer.err) == (0, "")
    assert answer.out


@pytest.mark.parametrize("words", [["demo"], ["eval", "bundled", "--data", "sample"]])
def test_without_any_engine(python: Run, words: list[str]) -> None:
    hidden = 'import sys; sys.modules["fracskip.runtime._native"] = None\n'
    error = python(hidden + WITHOUT_TORCH, *words).error
    assert error.startswith("the portable engine needs torch: pip install 'fracskip[train]', or")


def test_reports_need_no_torch(
    fracskip: Run, python: Run, checkpoint_file: Path, pictures: Path
) -> None:
    words = ("--data", f"folder:{pictures}", "--json", "r.json")
    assert fracskip("eval", checkpoint_file, *words).code == 0
    answer = python(WITHOUT_TORCH, "report", "r.json")
    assert (answer.code, answer.out, answer.err) == (0, "report: fracskip-report.html\n", "")


def test_the_doctor_needs_no_torch(python: Run) -> None:
    answer = python(WITHOUT_TORCH, "doctor", COLUMNS="200")
    assert (answer.code, answer.err) == (0, "")
    assert "not installed (pip install 'fracskip[train]')" in answer.out


def test_help_needs_no_torch(python: Run) -> None:
    answer = python(WITHOUT_TORCH, "eval", "--help")
    assert (answer.code, answer.err) == (0, "")
    assert answer.out.startswith("usage: fracskip eval")


BASE_IMPORT = """
import sys
import fracskip, fracskip.cli
from fracskip import Option, OptionSet, ConfigError
assert "torch" not in sys.modules
print(fracskip.OptionSet.of("skip8").labels)
"""


def test_the_base_package_loads_no_torch(python: Run) -> None:
    answer = python(BASE_IMPORT)
    assert (answer.code, answer.out, answer.err) == (0, "('skip', '8', 'full')\n", "")


LAZY_NAMES = """
import sys
sys.modules["torch"] = None
import fracskip
assert len(fracskip.load_sample()) == 1000
for name in ("load", "save", "export_bundle", "build_network", "preprocess", "DynamicNetwork"):
    try:
        getattr(fracskip, name)
    except fracskip.MissingExtraError as error:
        print(error)
try:
    fracskip.nonsense
except AttributeError as error:
    print(error)
"""


def test_names_that_need_torch_say_how_to_get_it(python: Run) -> None:
    answer = python(LAZY_NAMES)
    assert answer.err == ""
    names = ("load", "save", "export_bundle", "build_network", "preprocess", "DynamicNetwork")
    assert answer.out.splitlines() == [
        *(f"fracskip.{name} needs torch: pip install 'fracskip[train]'" for name in names),
        "module 'fracskip' has no attribute 'nonsense'",
    ]
