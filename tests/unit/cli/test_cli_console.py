"""What a person is shown, from records made by hand."""

from typing import Any

import pytest

from fracskip.cli import console

Capture = pytest.CaptureFixture[str]
OPTIONS = ("skip", "8", "full")


def evaluation(**changes: Any) -> dict[str, Any]:
    """An older record's keys: no word of escalation."""
    shares = dict(zip(OPTIONS, (0.25, 0.5, 0.25), strict=True))
    return {
        "checkpoint": {"model": "resnet38", "name": "net"},
        "data": {"name": "cifar10", "split": "test"},
        "images": 1000,
        "accuracy": 0.925,
        "cp": 0.05,
        "bitops_ratio": 0.12,
        "option_share": shares,
        "static": [],
        "decision_entropy_bits": 0.31,
        "seconds": 2.0,
        "device": "cpu",
        **changes,
    }


def sweep(*escalation_rate: float | None) -> dict[str, Any]:
    """A point for each share; None leaves the key out, as older records do."""
    points = [
        {
            "budget": 0.01 * place,
            "cp": 0.011 * place,
            "bitops_ratio": 0.02 * place,
            "accuracy": 0.9,
            "option_share": dict(zip(OPTIONS, (0.25, 0.5, 0.25), strict=True)),
            **({} if share is None else {"escalation_rate": share}),
        }
        for place, share in enumerate(escalation_rate, 1)
    ]
    checkpoint = {"model": "resnet38", "name": "net", "options": list(OPTIONS)}
    data = {"name": "cifar10", "split": "test"}
    return {"checkpoint": checkpoint, "data": data, "images": 1000, "points": points}


def prediction(allocation: list[str], first: list[str] | None = None) -> dict[str, Any]:
    row = {"file": "a.png", "class": "cat", "probability": 0.5, "cp": 0.05}
    return {**row, "allocation": allocation, "first_allocation": first}


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("│┃").replace("┃", "│").split("│")]


def table_of(text: str) -> list[list[str]]:
    """The cells of a table, its heading first."""
    return [cells(line) for line in text.splitlines() if line.startswith(("│", "┃"))]


def rows_of(text: str) -> list[list[str]]:
    """The same of a table without lines, under its title."""
    return [line.split() for line in text.splitlines()[1:] if line.strip(" ─")]


def test_an_evaluation_says_how_many_images_were_escalated(capsys: Capture) -> None:
    console.show_evaluation(evaluation(escalation_rate=0.234))
    assert capsys.readouterr().out.endswith("2.0 s on cpu. 23.4% of images were escalated.\n")
    for once in (evaluation(), evaluation(escalation_rate=0.0)):
        console.show_evaluation(once)
        assert capsys.readouterr().out.endswith("2.0 s on cpu.\n")


def test_a_sweep_has_a_column_for_escalation(capsys: Capture) -> None:
    console.show_sweep(sweep(0.0, 0.234))
    heading, *rows = rows_of(capsys.readouterr().out)
    assert heading == ["budget", "cp", "BitOps", "accuracy", "escalated", *OPTIONS]
    assert [row[4] for row in rows] == ["0.0%", "23.4%"]
    assert all(row[5:] == ["25.0%", "50.0%", "25.0%"] for row in rows)


@pytest.mark.parametrize("share", [None, 0.0])
def test_a_sweep_without_escalation_has_none(capsys: Capture, share: float | None) -> None:
    console.show_sweep(sweep(share, share))
    heading, *rows = rows_of(capsys.readouterr().out)
    assert heading == ["budget", "cp", "BitOps", "accuracy", *OPTIONS]
    assert [row[4:] for row in rows] == [["25.0%", "50.0%", "25.0%"]] * 2


@pytest.mark.parametrize("options", [OPTIONS, ("skip", "2", "3", "4", "6", "8")])
def test_tables_fit_a_terminal(
    capsys: Capture, monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    shares = dict.fromkeys(options, 1 / len(options))
    static = [
        {"option": label, "accuracy": 0.9, "cp": 0.0625, "bitops_ratio": 0.1234}
        for label in options[1:]
    ]
    console.show_evaluation(evaluation(option_share=shares, static=static))
    found = rows_of(capsys.readouterr().out)
    assert found[0] == ["blocks", "run", "accuracy", "cp", "BitOps", *options]
    assert found[1][:6] == ["by", "the", "gates", "92.50%", "5.00%", "12.00%"]
    assert found[2][:4] == ["all", "at", *(["32", "bits"] if "full" in options else ["8", "bits"])]
    record = sweep(0.2, 0.3)
    record["checkpoint"]["options"] = list(options)
    for point in record["points"]:
        point["option_share"] = shares
    console.show_sweep(record)
    heading, *rows = rows_of(capsys.readouterr().out)
    assert heading == ["budget", "cp", "BitOps", "accuracy", "escalated", *options]
    assert {len(row) for row in rows} == {len(heading)}
    assert not any("…" in cell for row in rows for cell in row)


def test_predictions_show_both_paths(capsys: Capture) -> None:
    easy, hard = ["skip", "8", "full"], ["8", "8", "full"]
    console.show_predictions([prediction(easy), prediction(hard, ["skip", "8", "skip"])])
    out = capsys.readouterr().out
    assert [row[-1] for row in table_of(out)[1:]] == ["·8F", "·8· > 88F"]
    assert out.splitlines()[-1].startswith("a > b: escalated")


def test_wide_labels_keep_their_gaps(capsys: Capture) -> None:
    console.show_predictions([prediction(["16", "8"], ["skip", "8"])])
    assert table_of(capsys.readouterr().out)[1][-1] == "· 8 > 16 8"


def test_two_paths_fit_a_narrow_terminal(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    console.show_predictions([prediction(["8"] * 17, ["skip"] * 17)])
    out = capsys.readouterr().out
    assert f"{'·' * 17} > {'8' * 17}" in out
    assert max(map(len, out.splitlines())) <= 80


def test_one_path_stands_alone(capsys: Capture) -> None:
    console.show_predictions([prediction(["skip", "8", "full"])])
    out = capsys.readouterr().out
    assert table_of(out)[1][-1] == "· 8 F"
    assert ">" not in out
