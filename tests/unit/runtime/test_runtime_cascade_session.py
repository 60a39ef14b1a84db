"""Sessions of cascades: what members answer, what callers may ask, what is measured."""

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fracskip
from fracskip.data import ImageSet
from fracskip.data.resampling import resize
from fracskip.errors import ConfigError, DataError
from fracskip.operating.cascade import Choice
from fracskip.operating.scores import answers_of, score_of
from fracskip.runtime import Cascade, InferenceSession
from fracskip.runtime.cascade_bundle import CascadeBundle, cascade_of
from fracskip.runtime.engines import instruction_sets
from fracskip.runtime.timing import Times
from support.small_cascades import member, networks, points, small_cascade

ENGINES: tuple[Any, ...] = ("portable", *(["native"] if instruction_sets() else []))
COUNT = 40


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FRACSKIP_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def bundle() -> CascadeBundle:
    """Three networks, whose images are of three sizes."""
    return small_cascade(((9, 12), (12, 12), (14, 16)), thresholds=(0.6, 0.4))


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return np.random.default_rng(5).integers(0, 256, (COUNT, 14, 16, 3), dtype=np.uint8)


def members_alone(bundle: CascadeBundle, images: np.ndarray, engine: Any) -> list[np.ndarray]:
    """Logits of each network by itself, on images that Python resized."""
    found = []
    for index in range(len(bundle.networks)):
        net, plan = networks((9, 12), (12, 12), (14, 16))[index], bundle.plan.networks[index]
        session = InferenceSession.of(net, engine=engine)
        found.append(session.run(resize(images, plan.image.size)).logits)
    return found


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("averaged", [False, True])
def test_an_image_is_answered_by_the_first_member_that_is_sure(
    images: np.ndarray, engine: Any, threads: int, averaged: bool
) -> None:
    bundle = small_cascade(((9, 12), (12, 12), (14, 16)), averaged=averaged)
    session = InferenceSession.of(bundle, threads, engine)
    logits = answers_of(members_alone(bundle, images, engine), [1.0] * 3, averaged)
    scores = [score_of(each, "probability") for each in logits]
    low, high = (float(np.quantile(scores[0], share)) for share in (0.3, 0.8))
    for thresholds in [(low, 0.5), (high, float(np.median(scores[1]))), (0.0, 0.5), (1.0, 1.0)]:
        choice = Choice((0, 1, 2), thresholds, (1.0, 0.5, 0.5), ((0, 1), (0, 1)), 1.0, 0.9)
        found = session.run_choice(images, choice)
        first = scores[0] < np.float32(thresholds[0])
        second = first & (scores[1] < np.float32(thresholds[1]))
        expected = np.where(first[:, None], logits[1], logits[0])
        expected = np.where(second[:, None], logits[2], expected)
        np.testing.assert_allclose(found.logits, expected, rtol=1e-4, atol=1e-4)
        rows = [execution.rows.tolist() for execution in found.executions]
        assert rows == [
            list(range(COUNT)),
            np.flatnonzero(first).tolist(),
            np.flatnonzero(second).tolist(),
        ]
        assert [execution.network for execution in found.executions] == [0, 1, 2]
        report = session.cost(found)
        np.testing.assert_allclose(found.cost, report.image_bitops, rtol=1e-5)
        assert (found.cost[second] > found.cost[first & ~second].max(initial=0)).all()
        with pytest.raises(ConfigError, match="no one matrix of decisions: use executions"):
            _ = found.decisions


@pytest.mark.parametrize("engine", ENGINES)
def test_a_network_may_stand_twice_and_goes_on_from_its_first_gated_block(engine: Any) -> None:
    """At its least and its largest budget: the second member sees what the first one saw."""
    (net,) = networks((12, 12), options=("skip", 8), budget_input=True, gate_width=4)
    blocks = len(net.plan.gated)
    shares = ((0.5, 0.5),) * blocks
    two = [member(0, each * 1e6, budget=each, shares=shares) for each in (0.1, 1.0)]
    session = InferenceSession.of(cascade_of([net], points(two)), engine=engine)
    pixels = np.random.default_rng(1).integers(0, 256, (8, 12, 12, 3), dtype=np.uint8)
    choice = Choice((0, 1), (1.0,), (1.0, 1.0), ((0.0, 1.0),), 1.0, 0.9)
    found = session.run_choice(pixels, choice)
    alone = InferenceSession.of(net, engine=engine)
    for execution, budget in zip(found.executions, (0.1, 1.0), strict=True):
        expected = alone.run(pixels, budget=budget)
        np.testing.assert_array_equal(execution.decisions, expected.executions[0].decisions)
        assert execution.network == 0
    np.testing.assert_allclose(found.logits, expected.logits, rtol=1e-5, atol=1e-5)
    assert found.decisions.shape == (8, blocks)  # members are of one network


def test_budgets_are_shares_of_the_last_member(bundle: CascadeBundle, images: np.ndarray) -> None:
    """Members cost 1, 2 and 4 of 4; half of the images go on from the first to the last: 0.75."""
    session = InferenceSession.of(bundle)
    assert session.budgets == (0.25, pytest.approx(0.75))
    assert session.choose(0.25).chain == (0,)
    assert session.choose().rates == (1.0, 0.5)
    assert session.choose(0.5).cost <= 0.5
    with pytest.raises(ConfigError, match=r"budget 0\.1 is out of this cascade's reach: give 0.25"):
        session.run(images, budget=0.1)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"budget": 0.5, "max_drop": 0.01}, "give one of budget, latency_us and max_drop"),
        ({"max_drop": 0.01, "max_latency_us": 10.0}, "give one of max_drop and max_latency_us"),
        ({"budget": [0.5] * COUNT}, r"does not fit a cascade: give one share in \(0, 1\]"),
        ({"budget": 0}, r"out of range: give a share in \(0, 1\]"),
        ({"budget": float("nan")}, r"out of range: give a share in \(0, 1\]"),
        ({"budget": "half"}, "does not fit a cascade"),
        ({"latency_us": -1}, "latency_us -1 is no time: give microseconds above 0"),
        ({"latency_us": float("inf")}, "is no time"),
        ({"latency_us": 0.001}, "out of this cascade's reach"),
        ({"max_latency_us": 0.001}, r"no member answers within 0\.001"),
        ({"max_drop": 1.5}, "max_drop 1.5 is out of range"),
        ({"decisions": np.zeros((COUNT, 1), int)}, "are for one network"),
        ({"time_gates": True}, "are for one network"),
    ],
)
@pytest.mark.filterwarnings("ignore:this bundle was never timed")
def test_what_a_cascade_can_t_be_asked(
    bundle: CascadeBundle, images: np.ndarray, asked: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        InferenceSession.of(bundle).run(images, **asked)


def test_what_a_network_can_t_be_asked() -> None:
    session = InferenceSession.of(networks((12, 12))[0])
    pixels = np.zeros((1, 12, 12, 3), np.uint8)
    for asked in ({"max_drop": 0.01}, {"hold": True}):
        with pytest.raises(ConfigError, match=r"make one of it with fracskip\.cascade"):
            session.run(pixels, **asked)
    with pytest.raises(ConfigError, match="takes no latency_us"):
        session.run(pixels, latency_us=10.0)
    with pytest.raises(ConfigError, match="no members to choose from"):
        session.choose(0.5)


def test_floats_do_not_fit_members_of_several_sizes(
    bundle: CascadeBundle, images: np.ndarray
) -> None:
    session = InferenceSession.of(bundle)
    with pytest.raises(DataError, match="give uint8 pixels, of which it makes each"):
        session.run(images.astype(np.float32) / 255, normalised=True)


def timed(session: InferenceSession, mean: tuple[float, ...]) -> Times:
    times = Times(session.digest, "here", mean, tuple(1.5 * each for each in mean))
    session._times = times
    return times


def test_latencies_are_budgets_on_a_clock(bundle: CascadeBundle, images: np.ndarray) -> None:
    """100, 200 and 400 us; half of the images to the last member: 300."""
    session = InferenceSession.of(bundle)
    timed(session, (100.0, 200.0, 400.0))
    assert session.choose(latency_us=100).chain == (0,)
    assert session.choose(latency_us=300.0).cost == pytest.approx(300)
    assert session.choose(latency_us=175.0).cost == pytest.approx(175)
    with pytest.raises(ConfigError, match=r"latency of 99 us is out of .* give 100 at least"):
        session.run(images, latency_us=99)
    # An image may take 1.5 times as long, in each member that sees it.
    assert session.choose(max_latency_us=160.0).chain == (0,)
    assert session.choose(max_latency_us=749.0).chain == (0, 1)
    assert session.choose(max_latency_us=750.0).chain == (0, 2)
    # What costs less on this clock is another point on that one.
    timed(session, (100.0, 20.0, 400.0))
    assert session.choose(latency_us=30.0).chain == (1,)


def test_times_are_measured_once_and_kept(bundle: CascadeBundle) -> None:
    with pytest.warns(UserWarning, match="never timed on this machine: it is now"):
        first = InferenceSession.of(bundle).times
    assert len(first.mean_us) == len(first.longest_us) == 3
    assert all(
        0 < mean <= longest for mean, longest in zip(first.mean_us, first.longest_us, strict=True)
    )
    assert InferenceSession.of(bundle).times == first  # no warning: they are errors in tests
    other = small_cascade(((9, 12), (14, 16)))
    with pytest.warns(UserWarning, match="never timed"):
        assert InferenceSession.of(other).times.digest == other.digest


@pytest.mark.parametrize("text", ["", "{}", "[1]", '{"digest": 1, "processor": "x"}', "\0"])
def test_damaged_times_are_measured_again(bundle: CascadeBundle, tmp_path: Path, text: str) -> None:
    session = InferenceSession.of(bundle)
    session.measure()
    (file,) = (tmp_path / "cache" / "times").iterdir()
    tree = json.loads(file.read_text())
    file.write_text(text)
    with pytest.warns(UserWarning, match="never timed"):
        assert InferenceSession.of(bundle).times.digest == tree["digest"]


def test_held_rates_follow_other_images(bundle: CascadeBundle) -> None:
    """The points' rates are made up: held, they become true on whatever images come."""
    session = InferenceSession.of(bundle)
    many = np.random.default_rng(2).integers(0, 256, (3000, 14, 16, 3), dtype=np.uint8)
    choice = Choice((0, 2), (0.999,), (1.0, 0.25), ((0.0, 0.1),), 0.5, 0.9)
    free = session.run_choice(many, choice)
    held = session.run_choice(many, choice, hold=True)
    assert len(free.executions[1].rows) / 3000 > 0.5
    late = held.executions[1].rows
    assert abs((late >= 1000).sum() / 2000 - 0.25) < 0.03
    tracker = session.tracker(choice)
    assert tracker is not None
    assert tracker.images == 3000
    assert tracker.drifted
    assert held.latency_us is not None
    assert held.latency_us.shape == (3000,)


def test_sessions_travel(bundle: CascadeBundle, images: np.ndarray, tmp_path: Path) -> None:
    net = Cascade(bundle)
    fracskip.save(net, tmp_path / "x.fsk")
    loaded = fracskip.load(tmp_path / "x.fsk")
    assert isinstance(loaded, Cascade)
    assert loaded.digest == net.digest
    expected = net.run(images).logits
    for session in (net.session(2), InferenceSession(tmp_path / "x.fsk")):
        again = pickle.loads(pickle.dumps(session))
        np.testing.assert_array_equal(again.run(images).logits, expected)
        assert "members=[0, 1, 2]" in repr(again)
    with pytest.raises(ConfigError, match=r"does not end in \.fsk"):
        fracskip.save(net, tmp_path / "x.safetensors")


def test_kernels_name_their_network(bundle: CascadeBundle) -> None:
    blocks = {block.split("/")[0] for block, _, _ in InferenceSession.of(bundle).kernels()}
    assert blocks == {"0", "1", "2"}


def test_records_of_cascades(bundle: CascadeBundle, images: np.ndarray) -> None:
    """Every point is executed; members alone, controls and rates are counted beside it."""
    labels = np.random.default_rng(3).integers(0, 5, COUNT)
    data = ImageSet(images, labels, bundle.plan.class_names, "noise", "test", "here")
    record = fracskip.evaluate(Cascade(bundle), data, name="three")
    assert record["schema"] == "fracskip.cascade/1"
    assert [item["image"] for item in record["members"]] == [[9, 12], [12, 12], [14, 16]]
    session = InferenceSession.of(bundle)
    found = session.run(images)
    (point,) = record["points"]
    assert point["accuracy"] == (found.predicted == labels).mean()
    assert point["rates"] == [1.0, len(found.executions[1].rows) / COUNT]
    assert point["cost"] == pytest.approx(0.25 + point["rates"][1])
    logits = members_alone(bundle, images, session.engine)
    alone = [float((each.argmax(1) == labels).mean()) for each in logits]
    assert [item["accuracy"] for item in record["members"]] == alone
    share = point["rates"][1]
    assert point["random_escalation"] == pytest.approx((1 - share) * alone[0] + share * alone[2])
    swept = fracskip.sweep(session, data, [0.3, 0.6])
    assert [point["budget"] for point in swept["points"]] == [0.3, 0.6]
    assert swept["points"][0]["cost"] < swept["points"][1]["cost"]
