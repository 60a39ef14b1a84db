"""What the documents point to is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), ROOT / "models" / "README.md"])
LINK = re.compile(r"\]\((?!https?:|#)([^)#\s]+)")
RECIPE = re.compile(r"recipes/\w+\.toml")


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_and_recipes_exist(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    links = {target for target in LINK.findall(text) if not (document.parent / target).exists()}
    recipes = {name for name in RECIPE.findall(text) if not (ROOT / name).exists()}
    assert not links
    assert not recipes


def test_there_are_links_to_check() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(LINK.findall(text)) > 10
