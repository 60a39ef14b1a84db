"""Profiles: steps are those that run, their MACs the network's, their times within an image's."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fracskip.errors import ConfigError, DataError
from fracskip.operating import Operation, Prediction, Setting
from fracskip.runtime import InferenceSession, profiling
from fracskip.runtime.bundle import parse_bundle
from fracskip.runtime.engines import instruction_sets, native_module
from fracskip.runtime.profiling import NetworkSteps, Peaks, Profile, Step
from support.random_bundle import random_bundle, random_images
from support.small_cascades import small_cascade

needs_native = pytest.mark.skipif(not instruction_sets(), reason="the native engine is not built")


def session_of(seed: int = 1, threads: int = 1, isa: str = "auto", **shape: Any) -> Any:
    return InferenceSession.of(parse_bundle(random_bundle(seed, **shape)), threads, "native", isa)


NETWORKS: dict[str, dict[str, Any]] = {
    "int8 stream": {},
    "float stream": {"stream": "float", "options": ("skip", 12, "full")},
    "bottlenecks": {"blocks": "bottleneck", "stem7": True, "image": (32, 24)},
    # Shortcuts so large that they are executed with the branch's last convolution.
    "joined": {"widths": (16, 128), "image": (64, 64), "depth": 1},
}


@needs_native
@pytest.mark.parametrize("isa", instruction_sets())
@pytest.mark.parametrize("network", NETWORKS)
def test_steps_are_the_kernels_that_run_and_their_macs_the_networks(network: str, isa: str) -> None:
    session = session_of(isa=isa, **NETWORKS[network])
    images = random_images(session.plan, 2)
    cost = session.profile
    kernels = {(part, option): names for part, option, names in session.kernels()}
    for option in session.options:
        found = session.profile_steps(images, decisions=session.forced(option, 2), rounds=1)
        expected = {"stem": cost.stem_macs, "head": cost.head_macs}
        for block in cost.blocks:
            runs = not (block.gated and option.is_skip)
            expected[block.name] = block.shortcut_macs + (block.branch_macs if runs else 0)
        macs = dict.fromkeys(expected, 0)
        names: dict[tuple[str, str], list[str]] = {}
        for step in found.steps:
            if step.macs:
                macs[step.part] += step.macs
                names.setdefault((step.part, step.option), []).extend(step.kernel.split(" + "))
                assert step.arithmetic in ("int8", "fp32", "bf16")
            assert step.calls == (6 if step.kernel == "gates" else 2)
            assert step.us > 0
            assert (step.bytes > 0) == (step.kernel != "gates")
        assert macs == expected
        joined = [step for step in found.steps if " + " in step.kernel]
        assert bool(joined) == (network == "joined" and not option.is_skip)
        assert {key: sorted(each) for key, each in names.items()} == {
            key: sorted(kernels[key]) for key in names
        }
        ran = {(block.name, option.label) for block in cost.gated}
        assert ran & set(kernels) - set(names) == {key for key in ran if not kernels[key]}
        assert found.networks[0].images == found.images == 2
        assert (found.isa, found.peaks) == (isa, Peaks())


@needs_native
@pytest.mark.parametrize("threads", [1, 2])
def test_steps_lie_within_an_images_time_and_change_no_answer(threads: int) -> None:
    """Large enough that two threads share steps."""
    session = session_of(threads=threads, image=(64, 64), widths=(32, 64))
    images = random_images(session.plan, 3)
    operation = session.plan.operating_points.at(None, 3, False)
    totals = [np.zeros((len(session.steps()), 2))]
    found = session.execute(images, operation, profile=totals)
    assert 0 < totals[0][:, 0].sum() <= found.latency_us.sum()
    plain = session.run(images)
    np.testing.assert_array_equal(found.logits, plain.logits)
    np.testing.assert_array_equal(found.decisions, plain.decisions)
    calls = list(zip(session.steps(), totals[0][:, 1].tolist(), strict=True))
    chosen = {
        (block, session.options.labels[index]): int((plain.decisions[:, column] == index).sum())
        for column, block in enumerate(session.plan.gated_names)
        for index in range(len(session.options))
    }
    for (part, option, kernel, _, _), count in calls:
        assert count == (9 if kernel == "gates" else chosen.get((part, option), 3))


@needs_native
def test_a_cascades_networks_have_the_steps_of_the_images_that_came_there() -> None:
    session = InferenceSession.of(small_cascade(), engine="native")
    images = np.random.default_rng(2).integers(0, 256, (16, 16, 16, 3), np.uint8)
    found = session.profile_steps(images, rounds=1, budget=0.625)
    choice = session.choose(0.625)
    assert choice.chain == (0, 1)
    came = [len(each.rows) for each in session.run_choice(images, choice).executions]
    assert [network.images for network in found.networks] == came
    assert came[0] == 16
    for index, network in enumerate(found.networks):
        assert {(step.network, step.calls) for step in network.steps} <= {(index, came[index])}
    assert found.steps == found.networks[0].steps + found.networks[1].steps
    alone = session.profile_steps(images, rounds=1, budget=0.25)
    assert alone.networks[1] == NetworkSteps(0, ())
    with pytest.raises(ConfigError, match="this session runs a cascade of several networks"):
        session.profile_steps(images, decisions=np.zeros((16, 0), np.uint8))


def test_medians_over_rounds_of_means_over_executions() -> None:
    """Four images in three rounds after a first, of which the second is executed by one."""
    rounds = iter([(400.0, 300.0, 0.0), (4.0, 8.0, 0.0), (40.0, 5.0, 0.0), (8.0, 2.0, 0.0)])
    latencies = iter([9.0, 1.0, 3.0, 2.0])

    class Session:
        networks, isa, threads = (None,), "avx2", 2

        def steps(self, network: int) -> list[tuple[str, str, str, int, int]]:
            return [
                ("", "", "pixels", 0, 30),
                ("a", "8", "avx2_int8_direct", 600, 10),
                ("a", "full", "avx2_fp32_direct", 600, 10),
            ]

        def execute(self, images: Any, *_: Any, profile: Any) -> Prediction[Any]:
            profile[0][:] += np.stack([next(rounds), (4, 1, 0)], 1)
            times = np.full(4, next(latencies), np.float32)
            return Prediction(np.zeros((4, 2)), np.zeros(4), (), latency_us=times)

    images, operation = np.zeros((4, 1, 1, 3), np.uint8), Operation((Setting(np.zeros(()), None),))
    found = profiling.profile(Session(), images, operation, rounds=3)  # type: ignore[arg-type]
    assert found == Profile(
        isa="avx2",
        threads=2,
        images=4,
        rounds=3,
        latency_us=2.0,
        peaks=Peaks(),
        networks=(
            NetworkSteps(
                0,
                (
                    Step(0, "", "", "pixels", calls=4, us=2.0, macs=0, bytes=30),
                    Step(0, "a", "8", "avx2_int8_direct", calls=1, us=5.0, macs=600, bytes=10),
                ),
            ),
        ),
    )
    assert found.total_us == 2 + 5 / 4
    assert found.share_of_roofline(found.steps) is None


def step(kernel: str, **fields: Any) -> Step:
    return Step(0, "a", "8", kernel, **{"calls": 1, "us": 4.0, "macs": 0, "bytes": 0, **fields})


@pytest.mark.parametrize(
    ("steps", "share"),
    [
        ([step("amx_int8_tiles", macs=2000, bytes=10)], 0.5),
        ([step("amx_int8_tiles", macs=2000, bytes=30)], 0.75),
        ([step("amx_fp32_direct", macs=2000)], 1.25),
        ([step("amx_int8_tiles + amx_int8_tiles", macs=1000)], 0.25),
        ([step("amx_quantize", bytes=20)], 0.5),
        ([step("amx_int8_tiles", macs=2000), step("amx_quantize", bytes=20, calls=3)], 0.5),
        ([step("amx_int8_tiles", macs=2000), step("amx_quantize", calls=3)], 0.125),
        ([step("amx_bf16_tiles", macs=2000)], None),  # its peak is missing
        ([step("gates")], None),
    ],
)
def test_a_share_of_the_roofline(steps: list[Step], share: float | None) -> None:
    """Of 1 MAC a nanosecond, 0.4 of float32, and 10 bytes a microsecond."""
    peaks = Peaks(int8=1e9, fp32=0.4e9, read=10e6)
    found = Profile("amx", 1, 1, 1, 5.0, peaks, (NetworkSteps(1, tuple(steps)),))
    assert found.share_of_roofline(found.steps) == (None if share is None else pytest.approx(share))


@needs_native
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("isa", instruction_sets())
def test_peaks_of_what_an_instruction_set_has(isa: str, threads: int) -> None:
    session = session_of(isa=isa, threads=threads)
    found = session.profile_steps(random_images(session.plan, 1), rounds=1, roofline=True).peaks
    names = {"scalar": (), "amx": ("int8", "fp32", "bf16", "read")}.get(isa)
    names = ("int8", "fp32", "read") if names is None else names
    for name in ("int8", "fp32", "bf16", "read"):
        rate = getattr(found, name)
        assert (rate is not None) == (name in names)
        assert rate is None or 1e7 < rate < 1e15


@needs_native
def test_errors() -> None:
    session = session_of()
    images = random_images(session.plan, 2)
    with pytest.raises(DataError, match="no images to profile: give one at least"):
        session.profile_steps(images[:0])
    with pytest.raises(ConfigError, match="rounds 0 is given: a whole number from 1 is needed"):
        session.profile_steps(images, rounds=0)
    with pytest.raises(DataError, match="do not fit"):
        session.profile_steps(images[:, 1:])
    with pytest.raises(ConfigError, match="decisions of shape"):
        session.profile_steps(images, decisions=[[1]])
    native = native_module()
    with pytest.raises(ValueError, match="unknown instruction set 'mmx'"):
        native.peaks("mmx", 1000)
    with pytest.raises(ValueError, match="threads must be 1 to"):
        native.peaks("auto", 1000, 0)


def test_the_portable_engine_times_no_steps() -> None:
    session = InferenceSession.of(parse_bundle(random_bundle(1)), engine="portable")
    with pytest.raises(ConfigError, match="the portable engine times no steps: open the session"):
        session.profile_steps(random_images(session.plan, 1))
