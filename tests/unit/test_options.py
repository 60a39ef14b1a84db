from __future__ import annotations

import dataclasses
import string
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fracskip.errors import ConfigError
from fracskip.options import PRESETS, Option, OptionSet

WIDTHS = (0, *range(2, 17), 32)
sets_of_bits = st.sets(st.sampled_from(WIDTHS), min_size=1).filter(lambda bits: bits != {0})


@pytest.mark.parametrize(
    ("value", "bits"),
    [
        ("skip", 0),
        (" Skip ", 0),
        ("FULL", 32),
        ("8", 8),
        (" 2", 2),
        ("0", 0),
        ("32", 32),
        (16, 16),
        (0, 0),
        (Option(4), 4),
    ],
)
def test_parse_takes_words_widths_and_options(value: Option | int | str, bits: int) -> None:
    assert Option.parse(value) == Option(bits)
    assert Option.parse(value).bits == bits


@pytest.mark.parametrize("width", [1, -1, -8, 17, 31, 33, 64, 8.0, 8.5, None, [8], True, False])
def test_an_unknown_width_is_refused_by_name(width: Any) -> None:
    with pytest.raises(ConfigError, match=r"unknown.*'skip'.*2 to 16.*'full'") as caught:
        Option.parse(width)
    assert repr(width) in str(caught.value)


@pytest.mark.parametrize("word", ["", "half", "8.5", "eight", "1", "17", "-2", "8 bits", "true"])
def test_an_unknown_word_is_refused_by_name(word: str) -> None:
    with pytest.raises(ConfigError, match=r"unknown.*'skip'.*2 to 16.*'full'") as caught:
        Option.parse(word)
    assert word in str(caught.value)


@pytest.mark.parametrize(
    ("bits", "label", "kind", "cost"),
    [
        (0, "skip", "is_skip", 0.0),
        (2, "2", "is_quantised", 1 / 256),
        (3, "3", "is_quantised", 9 / 1024),
        (4, "4", "is_quantised", 1 / 64),
        (8, "8", "is_quantised", 1 / 16),
        (16, "16", "is_quantised", 1 / 4),
        (32, "full", "is_full", 1.0),
    ],
)
def test_label_kind_and_cost(bits: int, label: str, kind: str, cost: float) -> None:
    option = Option(bits)
    assert option.label == label
    assert option.relative_cost == cost
    kinds = {name for name in ("is_skip", "is_quantised", "is_full") if getattr(option, name)}
    assert kinds == {kind}


@settings(deadline=None)
@given(st.sampled_from(WIDTHS))
def test_a_label_reads_back_as_its_option(bits: int) -> None:
    assert Option.parse(Option(bits).label) == Option(bits)


def test_presets_are_what_they_say() -> None:
    assert {name: preset.labels for name, preset in PRESETS.items()} == {
        "paper": ("skip", "8", "16", "full"),
        "paper7": ("skip", "8", "10", "12", "14", "16", "full"),
        "low": ("skip", "2", "3", "4", "6", "8"),
        "skip8": ("skip", "8", "full"),
    }
    assert OptionSet.of("paper7").costs == (0, 1 / 16, 25 / 256, 9 / 64, 49 / 256, 1 / 4, 1)
    assert OptionSet.of("low").costs == (0, 1 / 256, 9 / 1024, 1 / 64, 9 / 256, 1 / 16)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ([], "at least one.*none"),
        (["8", "skip"], r"'8', 'skip'.*ascend"),
        ([8, 4, 16], "ascend"),
        (["skip", 8, "8", "full"], "ascend without repeats"),
        ([4, 4], "without repeats"),
        (["skip"], "'skip' alone.*add a width"),
        ("papper", r"preset 'papper'.*paper, paper7, low, skip8"),
        ("8", r"preset '8' is unknown.*\['skip', 4, 8\]"),
        (["skip", 1], "option 1 is unknown"),
        (["skip", True, 8], "option True is unknown"),
        ([False, 8], "option False is unknown"),
        (["skip", [8]], r"option \[8\] is unknown"),
        (8, "options 8 are unknown.*list"),
        (None, "options None are unknown"),
        (1.5, "options 1.5 are unknown"),
    ],
)
def test_an_impossible_set_is_refused(value: Any, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        OptionSet.of(value)


def test_a_set_is_built_from_a_set_a_name_or_its_options() -> None:
    wanted = OptionSet((Option(0), Option(8), Option(32)))
    assert OptionSet.of("skip8") == wanted
    assert OptionSet.of(wanted) is wanted
    assert OptionSet.of(["skip", 8, "full"]) == wanted
    assert OptionSet.of(iter([Option(0), "8", 32])) == wanted
    assert hash(OptionSet.of(["skip", 8, "full"])) == hash(wanted)


def test_a_set_of_one_option_is_static() -> None:
    static = OptionSet.of([8])
    assert (len(static), static.top, static.can_skip, static.labels) == (1, 0, False, ("8",))


def test_values_are_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Option(8).bits = 4  # type: ignore[misc]
    with pytest.raises(dataclasses.FrozenInstanceError):
        OptionSet.of("skip8").options = ()  # type: ignore[misc]


def test_index_finds_every_spelling_and_names_what_is_missing() -> None:
    options = OptionSet.of("paper")
    assert [options.index(value) for value in ("skip", 8, "16", Option(32))] == [0, 1, 2, 3]
    with pytest.raises(ConfigError, match=r"option '4' is not in this set.*skip, 8, 16, full"):
        options.index(4)
    with pytest.raises(ConfigError, match="unknown"):
        options.index(33)


@settings(deadline=None)
@given(sets_of_bits)
def test_any_ascending_choice_is_a_set(bits: set[int]) -> None:
    ascending = sorted(bits)
    options = OptionSet.of(ascending)
    assert [option.bits for option in options] == ascending
    assert options.costs == tuple(width * width / 1024 for width in ascending)
    assert options.labels == tuple(
        {0: "skip", 32: "full"}.get(width, str(width)) for width in ascending
    )
    assert options.can_skip == (0 in bits)
    assert options[options.top].bits == max(bits)
    assert [options.index(option) for option in options] == list(range(len(bits)))
    assert OptionSet.of(options.labels) == options


@settings(deadline=None)
@given(st.lists(st.sampled_from(WIDTHS), min_size=2, max_size=6))
def test_a_list_is_taken_exactly_when_it_ascends(bits: list[int]) -> None:
    if bits == sorted(set(bits)):
        assert OptionSet.of(bits).labels
    else:
        with pytest.raises(ConfigError, match="ascend"):
            OptionSet.of(bits)


@settings(deadline=None)
@given(
    st.one_of(
        st.integers(), st.text(string.printable), st.floats(), st.none(), st.booleans(), st.binary()
    )
)
def test_any_other_value_is_an_option_or_a_config_error(value: Any) -> None:
    try:
        option = Option.parse(value)
    except ConfigError:
        return
    assert option.bits in WIDTHS
    assert isinstance(option.bits, int)
    assert not isinstance(value, bool | float | bytes | None)
