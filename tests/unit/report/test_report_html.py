"""The page: self-contained, deterministic, safe, and true to its records."""

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from synthetic_records import escalated, make_evaluation, make_events

from fracskip.errors import DataError, MissingExtraError
from fracskip.report import write_report
from fracskip.report.html import _environment
from fracskip.report.wording import allocation_words

Tree = dict[str, Any]
Save = Callable[..., Path]
VOID = {"meta", "link", "img", "br"}


class Page(HTMLParser):
    """A parsed page; complains if its elements are not nested properly."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.html = html
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.words: list[str] = []
        self._open: list[str] = []
        self.feed(html)
        assert not self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {key: value or "" for key, value in attrs}))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {key: value or "" for key, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self._open:
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join("".join(self.words).split())

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.elements if name == tag]

    @property
    def sections(self) -> list[str]:
        return [attributes["id"] for attributes in self.all("section")]


def page_of(records: list[Path], out: Path) -> Page:
    return Page(write_report(records, out).read_text(encoding="utf-8"))


def small(**changes: Any) -> Tree:
    return make_evaluation(blocks=3, classes=("cat", "dog"), examples=1) | changes


def bare(**changes: Any) -> Tree:
    """An evaluation with nothing but its totals and its static points."""
    tree = small(**changes)
    for key in ("blocks", "classes", "examples"):
        del tree[key]
    return tree


@pytest.fixture(scope="module")
def full_page(tmp_path_factory: pytest.TempPathFactory) -> Page:
    folder = tmp_path_factory.mktemp("full")
    evaluation = make_evaluation(examples=2)
    (folder / "evaluation.json").write_text(json.dumps(evaluation), encoding="utf-8")
    (folder / "r38").mkdir()
    log = "".join(json.dumps(event) + "\n" for event in make_events(evaluation))
    (folder / "r38" / "record.jsonl").write_text(log, encoding="utf-8")
    return page_of([folder / "evaluation.json", folder / "r38"], folder / "page.html")


def test_everything_is_there(full_page: Page) -> None:
    assert full_page.sections == ["results", "blocks", "images", "classes", "training", "records"]
    assert len(full_page.all("svg")) == 8
    assert len(full_page.all("img")) == 4


def test_headline_numbers_come_from_the_record(full_page: Page) -> None:
    assert (
        "92.5% of 10,000 cifar10 test images right at 5.0% of the full network's block computation"
    ) in full_page.text
    numbers = ["92.50%", "5.00%", "12.0%", "0.31"]  # dynamic: accuracy, cp, BitOps, entropy
    numbers += ["92.74%", "6.25%", "13.8%", "92.86%", "25.0%", "31.0%", "100%"]  # static
    share = make_evaluation(examples=2)["option_share"]
    numbers += [f"{100 * share[label]:.1f}%" for label in ("skip", "8", "16", "full")]
    numbers += ["resnet38", "sha256:" + "0" * 64, "12.3 s", "1 h 23 min", "torch 2.13.0", "cpu"]
    assert [number for number in numbers if number not in full_page.text] == []


def test_numbers_name_their_records(full_page: Page) -> None:
    identifiers = {attributes.get("id") for _, attributes in full_page.elements}
    references = [a["href"] for a in full_page.all("a") if a["href"].startswith("#record-")]
    assert set(references) == {"#record-1", "#record-2"}
    assert {reference[1:] for reference in references} <= identifiers
    assert "[1] evaluation.json" in full_page.text
    assert "[2] r38/record.jsonl" in full_page.text


def test_the_same_evaluation_in_two_records_appears_once(full_page: Page) -> None:
    assert sum("headline" in table.get("class", "") for table in full_page.all("table")) == 1


def test_needs_no_network(full_page: Page) -> None:
    for tag, attributes in full_page.elements:
        assert tag not in {"script", "iframe", "object", "embed", "base", "form"}
        for key, value in attributes.items():
            assert not key.startswith("on")
            if key in {"src", "href", "srcset", "xlink:href", "data", "action"}:
                assert value.startswith(("#", "data:image/png;base64,", "data:,"))
    assert "http:" not in full_page.html
    assert "https:" not in full_page.html
    assert "@import" not in full_page.html
    assert "url(" not in full_page.html.replace("url(#", "")


def test_is_accessible(full_page: Page) -> None:
    assert full_page.all("html") == [{"lang": "en"}]
    assert len(full_page.all("h1")) == 1
    assert all(image.get("alt") for image in full_page.all("img"))
    assert all(svg.get("aria-label") for svg in full_page.all("svg"))
    assert len(full_page.all("caption")) == len(full_page.all("table"))
    assert all("scope" in header for header in full_page.all("th"))
    allocations = [e for _, e in full_page.elements if e.get("class") == "allocation"]
    assert len(allocations) == 4
    assert all(e["role"] == "img" and "Allocation: " in e["aria-label"] for e in allocations)


def test_two_looks_are_drawn_one_above_the_other(save: Save, tmp_path: Path) -> None:
    tree = escalated(small())
    page = page_of([save(tree)], tmp_path / "page.html")
    assert "23.4% of the images were escalated." in page.text
    assert "Where there are two, the image was escalated" in page.text
    assert "Share of executions by option and block" in page.text
    (easy,), (hard,) = tree["examples"]["cheapest"], tree["examples"]["dearest"]
    allocations = [e for _, e in page.elements if e.get("class", "").startswith("allocation")]
    assert all(e["role"] == "img" for e in allocations)
    assert [e["aria-label"] for e in allocations] == [
        f"Allocation: {allocation_words(easy['allocation'])}",
        "First member: 8 bits, skip, 8 bits",
        f"Allocation: {allocation_words(hard['allocation'])}",
    ]
    assert [e["class"] for e in allocations] == ["allocation", "allocation first", "allocation"]
    cells = [e for tag, e in page.elements if tag == "i" and "--h" in e.get("style", "")]
    assert [e["class"] for e in cells] == [
        f"o-{label}"
        for path in (easy["allocation"], hard["first_allocation"], hard["allocation"])
        for label in path
    ]


@pytest.mark.parametrize("older", [True, False])
def test_one_look_is_not_spoken_of(save: Save, tmp_path: Path, older: bool) -> None:
    tree = small() if older else small(escalation_rate=0.0)
    if not older:
        for example in (*tree["examples"]["cheapest"], *tree["examples"]["dearest"]):
            example["first_allocation"] = None
    page = page_of([save(tree)], tmp_path / "page.html")
    assert "twice" not in page.text.lower()
    assert "First member" not in page.html
    assert "Share of images by option and block" in page.text


def test_identifiers_are_unique_and_references_resolve(full_page: Page) -> None:
    counts = Counter(a["id"] for _, a in full_page.elements if "id" in a)
    assert [name for name, count in counts.items() if count > 1] == []
    for _, attributes in full_page.elements:
        if attributes.get("href", "").startswith("#"):
            assert attributes["href"][1:] in counts
        if "aria-labelledby" in attributes:
            assert attributes["aria-labelledby"] in counts


def test_follows_light_and_dark(full_page: Page) -> None:
    assert "prefers-color-scheme: dark" in full_page.html
    assert "--o-8: #0585a9" in full_page.html
    assert "--o-8: #04a4ce" in full_page.html
    assert "#f0e" not in full_page.html


def test_same_records_same_bytes(save: Save, tmp_path: Path) -> None:
    records = [save(small()), save(make_events(joint=2)[:3], "r38/record.jsonl")]
    one = write_report(records, tmp_path / "one.html").read_bytes()
    assert write_report(records, tmp_path / "new" / "folder" / "two.html").read_bytes() == one
    assert sorted(p.name for p in (tmp_path / "new" / "folder").iterdir()) == ["two.html"]
    assert str(tmp_path) not in one.decode()


def test_names_are_escaped(save: Save, tmp_path: Path) -> None:
    evil = "<script>alert('x')</script>&\"$"
    tree = make_evaluation(blocks=3, classes=(evil, "dog"), examples=2)
    tree["checkpoint"]["name"] = tree["data"]["name"] = tree["device"] = evil
    tree["blocks"][0]["name"] = evil
    events = make_events(tree, joint=1)
    events[0]["recipe"] = {evil: evil}
    page = page_of([save(tree, "<b>.json"), save(events, "record.jsonl")], tmp_path / "page.html")
    assert not page.all("script")
    assert not any(tag == "b" and not attributes for tag, attributes in page.elements[:40])
    assert evil in page.text
    assert "[1] <b>.json" in page.text


def test_one_class_one_block(save: Save, tmp_path: Path) -> None:
    tree = make_evaluation(blocks=1, classes=("cat",), examples=1)
    page = page_of([save(tree)], tmp_path / "page.html")
    assert page.sections == ["results", "blocks", "images", "classes", "records"]
    assert "of 1 gated block one option" in page.text


def test_all_skip(save: Save, tmp_path: Path) -> None:
    skip = {"skip": 1.0, "8": 0.0, "16": 0.0, "full": 0.0}
    tree = small(cp=0, bitops_ratio=0.002, option_share=skip, decision_entropy_bits=-0.0)
    for part in (*tree["blocks"], *tree["classes"]):
        part |= {"option_share": skip} | ({"cp": 0} if "cp" in part else {"entropy_bits": 0})
    page = page_of([save(tree)], tmp_path / "page.html")
    assert "right at 0% of the full network's block computation" in page.text
    assert "0.200% of the 32-bit network's BitOps" in page.text
    assert "In 3 of 3 gated blocks" in page.text
    assert "-0.0" not in page.text


def test_absent_parts_are_left_out(save: Save, tmp_path: Path) -> None:
    tree = small()
    for key in ("blocks", "classes", "static", "examples", "decision_entropy_bits"):
        del tree[key]
    page = page_of([save(tree)], tmp_path / "page.html")
    assert page.sections == ["results", "records"]
    assert "static network" not in page.text
    assert "entropy" not in page.text.lower()


def test_static_network(save: Save, tmp_path: Path) -> None:
    tree = make_evaluation(options=("8",), blocks=2, classes=("cat", "dog"), examples=1)
    page = page_of([save(tree | {"static": []})], tmp_path / "page.html")
    assert "Static 8 bits" in page.text
    assert "Dynamic" not in page.text


def test_two_checkpoints_are_compared(save: Save, tmp_path: Path) -> None:
    low = make_evaluation(
        options=("skip", "2", "3", "4", "6", "8"), blocks=3, examples=1, name="low", seed=3
    )
    page = page_of([save(small()), save(low, "low.json")], tmp_path / "page.html")
    assert "2 evaluations compared" in page.text
    assert len([t for t in page.all("table") if t.get("class") == "headline"]) == 2
    assert len([s for s in page.all("svg") if s["aria-label"].startswith("Accuracy over")]) == 4


def test_a_record_given_twice_counts_once(save: Save, tmp_path: Path) -> None:
    path = save(bare())
    page = page_of([path, path], tmp_path / "page.html")
    assert "#record-2" not in page.html


def test_unfinished_run(save: Save, tmp_path: Path) -> None:
    log = save(make_events(finished=False)[:4], "r38/record.jsonl")
    with log.open("a") as file:
        file.write('{"event": "epo')
    page = page_of([log.parent], tmp_path / "page.html")
    assert page.sections == ["training", "records"]
    assert "Run r38 is unfinished: 3 epochs on record on cpu, the last in stage" in page.text
    assert "joint.optim.lr" in page.text


def test_run_without_epochs(save: Save, tmp_path: Path) -> None:
    page = page_of([save([make_events()[0]], "record.jsonl")], tmp_path / "page.html")
    assert page.sections == ["records"]
    assert "0 epochs on record" in page.text


def test_log_and_summary_of_a_run_are_one_run(save: Save, tmp_path: Path) -> None:
    events = make_events(joint=1)[:3]
    summary = {key: events[0][key] for key in ("name", "recipe", "versions", "device")}
    summary |= {"schema": "fracskip.run/2", "epochs": events[1:], "test": None, "seconds": None}
    records = [save(events, "record.jsonl"), save(summary, "run.json")]
    page = page_of(records, tmp_path / "page.html")
    assert len(page.all("svg")) == 2
    assert "#record-2" in page.html


def test_refuses_what_it_cannot_write(save: Save, tmp_path: Path) -> None:
    record = save(bare())
    with pytest.raises(DataError, match="at least one record"):
        write_report([], tmp_path / "page.html")
    with pytest.raises(DataError, match="a list of"):
        write_report(str(record), tmp_path / "page.html")
    with pytest.raises(DataError, match="overwrite one of its records"):
        write_report([record], record)
    with pytest.raises(DataError, match="is a folder"):
        write_report([record], tmp_path)
    with pytest.raises(DataError, match="could not be written"):
        write_report([record], record / "page.html")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["evaluation.json"]


@pytest.mark.parametrize("module", ["jinja2", "matplotlib"])
def test_missing_extra(
    save: Save, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    _environment.cache_clear()
    with pytest.raises(MissingExtraError, match=r"pip install 'fracskip\[report\]'") as caught:
        write_report([save(bare())], tmp_path / "page.html")
    assert module in str(caught.value)
    assert not (tmp_path / "page.html").exists()


def test_importing_the_room_needs_no_extra() -> None:
    code = (
        "import sys, fracskip.report; "
        "sys.exit(bool({'jinja2', 'matplotlib', 'torch'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
