"""Our own engine: a network by its gates and forced to options, a cascade and its members."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from fracskip.bench.contender import Contender, Load, Logits, Precision
from fracskip.bench.subject import Images
from fracskip.errors import MissingExtraError
from fracskip.operating import Prediction
from fracskip.operating.cascade import Choice
from fracskip.options import Option
from fracskip.runtime import InferenceSession
from fracskip.runtime.plan import Plan

BATCH = 256
POINTS = 6  # of a cascade
OurEngine = Literal["native", "portable"]
Call = Callable[[NDArray[np.uint8]], Prediction[NDArray[Any]]]


def native_contenders(
    bundle: str | Path,
    images: Images,
    *,
    engine: OurEngine,
    threads: int,
    cores: int,
    isa: str = "auto",
) -> list[Contender]:
    """A bundle's network or cascade, in the ways in which it can be run.

    A network runs by its gates, then forced to each option from the top down. A cascade runs at up
    to six operating points, evenly spaced in budget from the largest down, then each of its members
    by itself, the last one first. An operating point that is a member alone is left to the latter.

    Args:
        bundle: A .fsk file.
        images: What it classifies: pixels, which it normalises itself.
        engine: 'native' or 'portable'.
        threads: Of a session for one image.
        cores: Threads for throughput.
        isa: The native engine's instruction set.

    Raises:
        BundleError: if the file is no sound bundle.
        ConfigError: if the instruction set is none of this processor.
        MissingExtraError: if the engine is not there.
    """
    session = InferenceSession(bundle, threads=threads, engine=engine, isa=isa)
    if session.engine != engine:
        raise MissingExtraError(f"this installation has no {engine} engine")
    whole = InferenceSession(bundle, threads=cores, engine=engine, isa=isa)
    of = _of_network if session.cascade is None else _of_cascade
    return of(session, whole, images.test.images)


def _of_network(
    session: InferenceSession, whole: InferenceSession, pixels: NDArray[np.uint8]
) -> list[Contender]:
    def contender(option: Option | None) -> Contender:
        def call(session: InferenceSession, count: int) -> Call:
            decisions = None if option is None else session.forced(option, count)
            return partial(session.run, decisions=decisions)

        return _contender(
            session,
            whole,
            pixels,
            call,
            name="by its gates" if option is None else _words(option),
            precision="mixed" if option is None else _precision(option),
            role="dynamic" if option is None else "forced",
            option=None if option is None else option.label,
            cp=lambda: _cp(whole, pixels) if option is None else option.relative_cost,
        )

    forced = list(reversed(list(session.options))) if session.plan.gate is not None else []
    return [contender(None), *(contender(option) for option in forced)]


def _of_cascade(
    session: InferenceSession, whole: InferenceSession, pixels: NDArray[np.uint8]
) -> list[Contender]:
    plan = session.cascade
    assert plan is not None
    precisions = [_member_precision(plan.networks[member.network]) for member in plan.members]

    def contender(choice: Choice, budget: float | None, **fields: Any) -> Contender:
        used = {precisions[member] for member in choice.chain}
        return _contender(
            session,
            whole,
            pixels,
            lambda session, count: partial(session.run_choice, choice=choice),
            precision=used.pop() if len(used) == 1 else "mixed",
            settings={
                "chain": list(choice.chain),
                "thresholds": list(choice.thresholds),
                "rates": list(choice.rates),
                "cost": choice.cost,
                "budget": budget,
            },
            **fields,
        )

    found = []
    for choice, budget in _operating_points(session, plan.budgets).items():
        chain = " > ".join(map(str, choice.chain))
        name = f"{chain} at budget {budget:.3g}"
        found.append(contender(choice, budget, name=name, role="dynamic"))
    for index, member in reversed(list(enumerate(plan.members))):
        alone = Choice((index,), (), (1.0,), (), plan.bitops[index], 0.0)
        network = plan.networks[member.network]
        words = f"{network.name} {network.image.size[0]}x{network.image.size[1]}"
        words += "" if member.budget is None else f" at budget {member.budget:.3g}"
        found.append(
            contender(
                alone,
                member.budget,
                name=f"member {index}: {words} alone",
                network=f"{words} alone",
                role="member",
            )
        )
    # Budgets that differ in the fourth digit are one point.
    return list({one.name: one for one in found}.values())


def _operating_points(
    session: InferenceSession, budgets: tuple[float, float]
) -> dict[Choice, float]:
    """Chains of several members, with the largest of the budgets that each is chosen for."""
    found: dict[Choice, float] = {}
    low, high = budgets
    for budget in np.geomspace(high, low, POINTS).tolist():
        choice = session.choose(budget)
        if len(choice.chain) > 1:
            found.setdefault(choice, budget)
    return found


def _member_precision(network: Plan) -> Precision:
    return "mixed" if network.gate is not None else _precision(network.option_set[0])


def _contender(
    session: InferenceSession,
    whole: InferenceSession,
    pixels: NDArray[np.uint8],
    call: Callable[[InferenceSession, int], Call],
    *,
    name: str,
    network: str | None = None,
    settings: Mapping[str, Any] | None = None,
    **fields: Any,
) -> Contender:
    """One way to run a bundle.

    Args:
        session: For one image.
        whole: With every core.
        pixels: Of the test images, (N, H, W, C).
        call: Gives what a session runs for so many images; made before anything is timed.
        name: Without the engine.
        network: Which network, in words, if not by its name.
        settings: Further ones.
        fields: Of the contender.
    """
    run, own = _runner(call(session, 1))
    return Contender(
        name=f"{session.engine} {name}",
        engine=session.engine,
        network=name if network is None else network,
        inputs=[pixels[row : row + 1] for row in range(len(pixels))],
        run=run,
        loads=lambda: [_load(whole, pixels, call)],
        settings={
            "isa": session.isa,
            "threads": session.threads,
            "input": "uint8 pixels",
            **(settings or {}),
        },
        own_latency_us=own,
        **fields,
    )


def _runner(call: Call) -> tuple[Callable[[Any], Logits], Callable[[], float]]:
    last: list[Prediction[NDArray[Any]]] = []

    def run(image: NDArray[np.uint8]) -> Logits:
        result = call(image)
        last[:] = [result]
        return result.logits

    def own() -> float:
        assert last[0].latency_us is not None  # a session measures it
        return float(last[0].latency_us[0])

    return run, own


def _load(
    session: InferenceSession,
    pixels: NDArray[np.uint8],
    call: Callable[[InferenceSession, int], Call],
) -> Load:
    batch = np.ascontiguousarray(pixels[:BATCH])
    work = call(session, len(batch))

    def run() -> int:
        work(batch)
        return len(batch)

    return Load(f"batch of {len(batch)}, {session.threads} threads", run)


def _cp(session: InferenceSession, pixels: NDArray[np.uint8]) -> float:
    return session.cost(session.run(pixels)).cp


def _precision(option: Option) -> Precision:
    if option.is_skip:
        return "mixed"
    return "int8" if option.is_quantised and option.bits <= 8 else "fp32"


def _words(option: Option) -> str:
    if option.is_skip:
        return "all skipped"
    return "all in full" if option.is_full else f"all at {option.bits} bits"
