"""A cascade of networks that are there already: its operating points, found on validation images.

No network is trained. What is chosen by labels - temperatures, which score decides, and of many
chains those that are kept - is chosen on a third of the images, and thresholds are quantiles of
their scores. What the points say of accuracy is counted on the others.

Shapes: B images of a batch, N of the validation set, C classes.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, Union

import numpy as np
from numpy.typing import NDArray

from fracskip.config import ImageConfig
from fracskip.cost import account, option_shares
from fracskip.data import ImageSet
from fracskip.errors import ConfigError, DataError
from fracskip.evaluation.predictions import Progress
from fracskip.evaluation.source import Batches, source_of
from fracskip.machine import cores
from fracskip.operating.calibration import MemberOutputs, choose_points
from fracskip.operating.cascade import MAX_NETWORKS
from fracskip.options import FULL_BITS
from fracskip.runtime.bundle import BUNDLED, SUFFIX, Bundle
from fracskip.runtime.cascade import Cascade
from fracskip.runtime.cascade_bundle import cascade_of, check_fit
from fracskip.runtime.engines import resized
from fracskip.runtime.session import InferenceSession

if TYPE_CHECKING:
    from fracskip.dynamic import DynamicNetwork

One: TypeAlias = Union["DynamicNetwork", InferenceSession, Bundle, str, Path]
Given: TypeAlias = One | tuple[One, float]

BUDGETS = 4  # of a network that takes any
FEW_IMAGES = 500
KNOWN_IMAGES = 0.999  # accuracy of a network on images that it was trained on
BATCH = 250


def cascade(
    members: Sequence[Given],
    validation: ImageSet | Batches,
    *,
    image: ImageConfig | None = None,
    progress: Progress | None = None,
) -> Cascade:
    """Makes a cascade of trained networks: easy images end at a small one, hard ones go on.

    Args:
        members: Two to four networks of the same classes, in any order: networks in torch,
            sessions, files of bundles or checkpoints. One whose gates take a budget stands for
            several members, at budgets over its range; (network, budget) names one.
        validation: Labelled images that no member was trained on: a set, or an iterable of batches
            of pixels, uint8 (B, H, W, channels), of the largest member's size or larger, or of
            normalised floats (B, channels, H, W). A thousand or more.
        image: How floats were normalised (mean, std), if not as the largest member takes them.
        progress: Called with the number of images done after each batch.

    Returns:
        The cascade, with thresholds for every operating point.

    Raises:
        ConfigError: if the members do not go together.
        DataError: if the images do not fit, are none, or are of one class.

    >>> net = fracskip.cascade([small, large], validation)  # doctest: +SKIP
    >>> net.session(threads=2).run(images, max_drop=0.005)  # doctest: +SKIP
    """
    networks, settings = _networks(members)
    answers, labels = _answered(networks, settings, validation, image, progress)
    _check_labels(answers, labels)
    answers.sort(key=lambda each: each.bitops)
    # Networks in the order of their cheapest members, whatever order they were given in.
    order = list(dict.fromkeys(each.network for each in answers))
    answers = [replace(each, network=order.index(each.network)) for each in answers]
    points = choose_points(answers, labels)
    return Cascade(cascade_of([networks[number] for number in order], points))


# -- members --------------------------------------------------------------------------------------


def _networks(members: Sequence[Given]) -> tuple[list[Bundle], list[tuple[int, float | None]]]:
    """The networks, each once, and which members are made of them: (network, budget) each."""
    networks: list[Bundle] = []
    settings: list[tuple[int, float | None]] = []
    for given in members:
        one, budget = given if isinstance(given, tuple) else (given, None)
        bundle = opened(one)
        known = [k for k, other in enumerate(networks) if other.digest == bundle.digest]
        number = known[0] if known else len(networks)
        if not known:
            networks.append(bundle)
        for each in _budgets(bundle, budget):
            if (number, each) in settings:
                at = "" if each is None else f" at budget {each:g}"
                raise ConfigError(
                    f"{bundle.plan.name} stands twice in the cascade{at}: leave one out, or give "
                    "it another size or budget"
                )
            settings.append((number, each))
    if len(settings) < 2:
        raise ConfigError(
            f"a cascade of {len(settings)} members has nothing to escalate to: give two to "
            f"{MAX_NETWORKS} networks"
        )
    if len(networks) > MAX_NETWORKS:
        raise ConfigError(f"{len(networks)} networks are given, {MAX_NETWORKS} at most are allowed")
    try:
        check_fit([network.plan for network in networks])
    except ValueError as error:
        raise ConfigError(str(error)) from None
    return networks, settings


def opened(one: One) -> Bundle:
    """A member as a bundle.

    Args:
        one: A network in torch, a session, or a file of a bundle or checkpoint.

    Raises:
        ConfigError: if it is a cascade itself, or has no place in a bundle.
    """
    if isinstance(one, str | Path):
        if Path(one).suffix == SUFFIX or str(one) in BUNDLED:
            one = InferenceSession(one)
        else:
            from fracskip.checkpoint import load

            one = load(one)
    if isinstance(one, Cascade) or (isinstance(one, InferenceSession) and one.cascade is not None):
        raise ConfigError("a member is a cascade itself: give its networks, side by side")
    if isinstance(one, Bundle):
        return one
    if isinstance(one, InferenceSession):
        return one.bundle
    from fracskip.deployment.bundle import bundle_in_memory

    return bundle_in_memory(one)


def _budgets(bundle: Bundle, budget: float | None) -> list[float | None]:
    """Those of its own at which a network is a member."""
    plan = bundle.plan
    points = plan.operating_points
    reach = points.changed(cascade=()).budgets(plan.budget_input)
    if budget is not None or reach is None:
        points.changed(cascade=()).at(budget, 1, plan.budget_input)  # refuses what it can't take
        return [budget]
    low, high = max(reach[0], 1e-3), reach[1]
    return [float(each) for each in np.geomspace(low, high, BUDGETS)]


# -- predictions ----------------------------------------------------------------------------------


def _answered(
    networks: Sequence[Bundle],
    settings: Sequence[tuple[int, float | None]],
    validation: ImageSet | Batches,
    image: ImageConfig | None,
    progress: Progress | None,
) -> tuple[list[MemberOutputs], NDArray[np.int64]]:
    """What each member says of all images, and their labels (N,)."""
    sessions = [InferenceSession.of(bundle, threads=cores()) for bundle in networks]
    largest = max((session.image for session in sessions), key=lambda each: each.size)
    source = source_of(validation, networks[0].plan.class_names)
    known = sessions[0].class_names
    numbers = tuple(map(str, range(len(known))))
    fits = source.class_names == known or (
        known == numbers and len(source.class_names) == len(known)
    )
    if not fits:
        raise DataError(
            f"{source.name} has other classes than the members, whose {len(known)} begin with "
            f"{', '.join(known[:4])}: give images of the same classes in the same order"
        )
    logits: list[list[NDArray[np.float32]]] = [[] for _ in settings]
    decisions: list[list[NDArray[Any]]] = [[] for _ in settings]
    for batch in source.batches(BATCH):
        pixels = _pixels(batch, image or largest, largest)
        sized = {size: resized(pixels, size) for size in {s.image.size for s in sessions}}
        for index, (number, budget) in enumerate(settings):
            session = sessions[number]
            operation = session.alone(budget, len(pixels))
            found = session.execute(sized[session.image.size], operation)
            logits[index].append(found.logits)
            decisions[index].append(found.executions[0].decisions)
        if progress is not None:
            progress(len(pixels))
    if not len(source.labels):
        raise DataError("there is no validation image: give a thousand or more, with labels")
    answers = []
    for index, (number, budget) in enumerate(settings):
        session, chosen = sessions[number], np.concatenate(decisions[index])
        ratio = account(chosen, session.options, session.profile).bitops_ratio
        shares: tuple[tuple[float, ...], ...] = ()
        if networks[number].plan.gate is not None:
            shares = tuple(map(tuple, option_shares(chosen, session.options).tolist()))
        bitops = ratio * session.profile.backbone_macs * FULL_BITS**2
        answers.append(MemberOutputs(number, budget, np.concatenate(logits[index]), bitops, shares))
    return answers, source.labels


def _pixels(batch: NDArray[Any], given: ImageConfig, wanted: ImageConfig) -> NDArray[np.uint8]:
    """A batch as uint8 (B, H, W, channels) of the largest member's size."""
    if batch.dtype != np.uint8:
        if batch.dtype.kind != "f" or batch.shape[1] != wanted.channels:
            raise DataError(
                f"images of shape {batch.shape} and type {batch.dtype} do not fit: give pixels, "
                f"uint8 (images, height, width, {wanted.channels}), or normalised floats (images, "
                f"{wanted.channels}, height, width)"
            )
        mean, std = (np.array(each, np.float32) for each in (given.mean, given.std))
        levels = (batch.transpose(0, 2, 3, 1) * std + mean) * 255
        if not (np.isfinite(levels).all() and levels.min() > -1 and levels.max() < 256):
            raise DataError(
                "normalised images give pixels outside of 0 to 255: say with image= how they were "
                "normalised, or give uint8 pixels"
            )
        batch = np.rint(levels).clip(0, 255).astype(np.uint8)
    high, wide = batch.shape[1:3]
    if batch.shape[3] != wanted.channels or high < wanted.size[0] or wide < wanted.size[1]:
        raise DataError(
            f"images of shape {batch.shape[1:]} are smaller than the largest member takes, "
            f"{(*wanted.size, wanted.channels)}: give images of that size or larger"
        )
    return resized(np.ascontiguousarray(batch), wanted.size)


def _check_labels(answers: Sequence[MemberOutputs], labels: NDArray[np.int64]) -> None:
    if len(np.unique(labels)) < 2:
        raise DataError(
            f"all {len(labels)} validation images are of one class, which no threshold can be "
            "chosen by: give images of all classes"
        )
    if len(labels) < FEW_IMAGES:
        warnings.warn(
            f"{len(labels)} validation images are few: each accuracy is known to within "
            f"{100 / np.sqrt(len(labels)):.0f} points; give a thousand or more",
            stacklevel=4,
        )
    for each in answers:
        right = float((each.logits.argmax(1) == labels).mean())
        if right >= KNOWN_IMAGES and len(labels) >= FEW_IMAGES:
            warnings.warn(
                f"a member is right on {right:.2%} of the validation images, as networks are on "
                "images that they were trained on: of others it is less sure, and more of them "
                "are escalated; give images that no member has seen",
                stacklevel=4,
            )
            return
