"""Files of older versions are read in today's words, and their users are told."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from fracskip.cli import main
from fracskip.config import load_recipe, recipe_from_dict
from fracskip.legacy import bundle, recipe, translated

OLD = Path(__file__).parents[1] / "support" / "old"
CAPTURE = "runtime.capture does nothing any more: leave it out"


@pytest.mark.parametrize("name", ["recipe.toml", "recipe.json"])  # written by hand; of a run
def test_an_old_recipe_loads_with_a_warning(name: str) -> None:
    today = {"name": "old", "options": ["skip", 4, 8], "joint": {"epochs": 1}}
    with pytest.warns(UserWarning, match=rf"{name}: {CAPTURE}") as said:
        found = load_recipe(OLD / name)
    assert len(said) == 1
    wanted = recipe_from_dict({**today, "runtime": {"compile": True}})
    assert found.model_dump() == wanted.model_dump()


def test_a_run_s_folder_goes_on_with_the_recipe_of_before(tmp_path: Path) -> None:
    from fracskip.training.folder import require_same_recipe

    before = json.loads((OLD / "recipe.json").read_text())
    before["runtime"]["capture"] = False  # as runs record what was not asked for: without a word
    today = recipe_from_dict({"name": "old", "options": ["skip", 4, 8], "joint": {"epochs": 1}})
    require_same_recipe(before, today, tmp_path)


@pytest.mark.filterwarnings("default")
def test_the_command_line_says_it_in_a_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["train", str(OLD / "recipe.toml"), "--resume"]) == 2
    first, *rest = capsys.readouterr().err.splitlines()
    assert first == f"fracskip: warning: {OLD / 'recipe.toml'}: {CAPTURE}"
    assert len(rest) == 1  # there is nothing to resume


@pytest.mark.parametrize(
    ("tree", "today", "notes"),
    [
        ({"runtime": {"capture": True}}, {"runtime": {}}, [CAPTURE]),
        ({"runtime": {"capture": False, "threads": 2}}, {"runtime": {"threads": 2}}, []),
        ({"runtime": {"compile": True}}, {"runtime": {"compile": True}}, []),
        ({"runtime": 3}, {"runtime": 3}, []),
        ({"capture": True}, {"capture": True}, []),
        ([1], [1], []),
    ],
)
def test_a_recipe_in_today_s_words(tree: Any, today: Any, notes: list[str]) -> None:
    given = copy.deepcopy(tree)
    assert recipe(given) == (today, notes)
    assert given == tree


@pytest.mark.parametrize(
    ("tree", "today", "notes"),
    [
        ({"a": {"b": 1, "x": 2}}, {"a": {"x": 2}, "c": {"d": 1}}, ["a.b is called c.d now"]),
        ({"a": {"b": 1}, "c": {"d": 2, "e": 3}}, {"a": {}, "c": {"d": 2, "e": 3}}, None),
        ({"f": [1], "a": 0}, {"a": 0, "g": [1]}, ["f is called g now"]),
        ({"c": 5}, {"c": 5}, []),
    ],
)
def test_keys_that_have_moved(tree: Any, today: Any, notes: list[str] | None) -> None:
    notes = ["a.b is called c.d now"] if notes is None else notes
    assert translated(tree, {"a.b": "c.d", "f": "g"}) == (today, notes)


@pytest.mark.parametrize(
    ("parts", "today"),
    [
        ([{"after": [{"padding": [1, 2]}]}], [{"after": [{"padding": [1, 2, 1, 2]}]}]),
        # Four are no padding of version 3, nor are eight one of today's.
        ([{"shortcut": [{"padding": [1, 1, 1, 1]}]}], [{"shortcut": [{"padding": [1] * 8}]}]),
        ([{"branch": [{"padding": 1}, 2]}, 4], [{"branch": [{"padding": 1}, 2]}, 4]),
        ([{"branch": {"padding": [1]}}], [{"branch": {"padding": [1]}}]),
        ({"branch": 1}, {"branch": 1}),
    ],
)
def test_a_bundle_s_windows_pad_both_sides_alike_until_version_3(parts: Any, today: Any) -> None:
    given = {"version": 3, "network": {"parts": parts}}
    before = copy.deepcopy(given)
    assert bundle(given) == {"version": 4, "network": {"parts": today}}
    assert given == before
    for other in ({**given, "version": 4}, [given], None):
        assert bundle(other) is other
