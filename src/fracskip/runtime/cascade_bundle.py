"""A cascade's bundle (.fsk): several networks in one file, and how they are operated.

See docs/bundle.md. Each network is as in a bundle of its own; names of its tensors begin with its
number.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import ConfigDict, Field, model_validator

from fracskip.config import FIRST_FAULT, ImageConfig
from fracskip.data.resampling import LARGEST
from fracskip.errors import BundleError, ConfigError
from fracskip.files import write_atomically
from fracskip.operating.cascade import MAX_NETWORKS, CascadePoints
from fracskip.runtime.bundle import (
    Bundle,
    Container,
    bundle_in,
    bytes_of,
    check_tensors,
    encode_container,
    open_container,
    read_plan,
    refuse_others,
)
from fracskip.runtime.plan import Plan

CASCADE_SCHEMA: Literal["fracskip.cascade"] = "fracskip.cascade"
CASCADE_VERSION: Literal[1] = 1
Arrays = Mapping[str, NDArray[Any]]


class CascadePlan(CascadePoints):
    """The plan of a cascade's bundle.

    Attributes:
        networks: Their plans.
        weights_of: Of each network, an earlier one whose weights ('NAME.weight') it takes where it
            has none of a name; None: it has all.
    """

    model_config = ConfigDict(populate_by_name=True)

    # `schema` is a name of pydantic's.
    kind: Literal["fracskip.cascade"] = Field(alias="schema")
    version: Literal[1]
    networks: Annotated[tuple[Plan, ...], FIRST_FAULT, Field(min_length=1, max_length=MAX_NETWORKS)]
    weights_of: Annotated[tuple[int | None, ...], FIRST_FAULT]

    @property
    def class_names(self) -> tuple[str, ...]:
        """What a logit's index stands for."""
        return self.networks[0].class_names

    @cached_property
    def image(self) -> ImageConfig:
        """Of the largest network: what is handed to the cascade."""
        return max((plan.image for plan in self.networks), key=lambda image: image.size)

    @property
    def name(self) -> str:
        """Its members' names."""
        return " > ".join(self.networks[member.network].name for member in self.members)

    @model_validator(mode="after")
    def _networks_go_together(self) -> CascadePlan:
        check_fit(self.networks)
        if len(self.weights_of) != len(self.networks):
            raise ValueError("weights_of names a network, or none, for each network")
        for index, source in enumerate(self.weights_of):
            if source is not None and not 0 <= source < index:
                raise ValueError(f"network {index} takes weights of {source}, no earlier network")
        used = {member.network for member in self.members}
        if used != set(range(len(self.networks))):
            raise ValueError("each network is a member, and each member one of the networks")
        for member in self.members:
            plan = self.networks[member.network]
            wanted = len(plan.gated) if plan.gate is not None else 0
            if len(member.shares) != wanted or any(
                len(row) != len(plan.options) for row in member.shares
            ):
                raise ValueError("a member has not a share for each option of each gated block")
            if member.budget is not None:
                try:
                    plan.operating_points.at(member.budget, 1, plan.budget_input)
                except ConfigError as error:
                    raise ValueError(f"a member's {error}") from None
        return self


def check_fit(networks: Sequence[Plan]) -> None:
    """Refuses networks that can't answer one question.

    Raises:
        ValueError: if they have other classes, channels, or no largest image.
    """
    first, *others = networks
    for index, other in enumerate(others, 1):
        if other.class_names != first.class_names:
            raise ValueError(
                f"network {index} ({other.name}) has the classes {_some(other)}, network 0 "
                f"({first.name}) {_some(first)}: a cascade's networks have the same classes in "
                "the same order"
            )
        if other.image.channels != first.image.channels:
            raise ValueError("a cascade's networks take images of the same channels")
    sizes = {plan.image.size for plan in networks}
    if len(sizes) > 1 and max(max(size) for size in sizes) > LARGEST:
        raise ValueError(f"networks of several sizes take images of up to {LARGEST} pixels a side")
    high, wide = (max(plan.image.size[axis] for plan in networks) for axis in (0, 1))
    if not any(plan.image.size == (high, wide) for plan in networks):
        raise ValueError(
            f"no network takes images of {high}x{wide}: one of them must be the largest in both "
            "directions, so that the others' pixels can be made of its"
        )


def _some(plan: Plan) -> str:
    more = f", ... ({len(plan.class_names)} in all)" if len(plan.class_names) > 4 else ""
    return ", ".join(plan.class_names[:4]) + more


@dataclass(frozen=True)
class CascadeBundle:
    """A cascade's bundle that has been checked.

    Attributes:
        plan: What is in it.
        networks: The networks, as bundles whose `data` is empty.
        digest: 'sha256:...' over plan and tensors.
        data: The file's bytes.
    """

    plan: CascadePlan
    networks: tuple[Bundle, ...]
    digest: str
    data: bytes


def read_any(name: str | Path) -> Bundle | CascadeBundle:
    """Reads and checks the bundle of a network or of a cascade.

    Args:
        name: 'bundled' or a file's path.

    Raises:
        BundleError: saying what is wrong with it.
    """
    return parse_any(*bytes_of(name))


def parse_any(data: bytes, origin: str | Path = "bundle") -> Bundle | CascadeBundle:
    """Checks the bytes of either kind of bundle.

    Raises:
        BundleError: saying what is wrong with them.
    """
    container = open_container(data, origin)
    if container.schema != CASCADE_SCHEMA:
        return bundle_in(container, origin)
    return _cascade_in(container, origin)


def _cascade_in(container: Container, origin: str | Path) -> CascadeBundle:
    refuse_others(container, CASCADE_SCHEMA, [CASCADE_VERSION], origin)
    plan = read_plan(CascadePlan, container.text, origin)
    owned: list[dict[str, NDArray[Any]]] = [{} for _ in plan.networks]
    for name, value in container.tensors.items():
        number, dot, rest = name.partition(".")
        if not (dot and number in {str(index) for index in range(len(owned))}):
            raise BundleError(
                f"{origin}: its plan has no network for tensor {name}; export it again"
            )
        owned[int(number)][rest] = value
    networks: list[Bundle] = []
    for index, (each, own) in enumerate(zip(plan.networks, owned, strict=True)):
        source = plan.weights_of[index]
        if source is not None:
            known = each.tensor_table
            shared = {
                name: value
                for name, value in networks[source].tensors.items()
                if is_weight(name) and name in known and name not in own
            }
            if not shared:
                raise BundleError(
                    f"{origin}: network {index} takes no weight of {source}; export it again"
                )
            own = {**own, **shared}
        check_tensors(each, own, f"{origin}, network {index}")
        networks.append(Bundle(each, own, container.digest, b""))
    return CascadeBundle(plan, tuple(networks), container.digest, container.data)


def cascade_of(networks: Sequence[Bundle], points: CascadePoints) -> CascadeBundle:
    """Puts networks together in one bundle; equal tensors of two are stored once.

    Raises:
        ConfigError: if the networks do not go together.
        BundleError: if the points do not fit them.
    """
    plans = [network.plan for network in networks]
    try:
        check_fit(plans)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    tensors: dict[str, NDArray[Any]] = {}
    weights_of: list[int | None] = []
    for index, network in enumerate(networks):
        source, shared = _most_alike(network, networks[:index])
        weights_of.append(source)
        for name, value in network.tensors.items():
            if name not in shared:
                tensors[f"{index}.{name}"] = value
    plan = CascadePlan(
        **dict(points),
        kind=CASCADE_SCHEMA,
        version=CASCADE_VERSION,
        networks=tuple(plans),
        weights_of=tuple(weights_of),
    )
    data, _ = encode_container(plan.model_dump_json(by_alias=True), tensors)
    found = parse_any(data, plan.name)
    assert isinstance(found, CascadeBundle)
    return found


def _most_alike(network: Bundle, earlier: Sequence[Bundle]) -> tuple[int | None, set[str]]:
    """The earlier network with which one shares most bytes, and the tensors that they share."""
    best: tuple[int, int | None, set[str]] = (0, None, set())
    for index, other in enumerate(earlier):
        same = {
            name
            for name, value in network.tensors.items()
            if is_weight(name)
            and name in other.tensors
            and other.tensors[name].dtype == value.dtype
            and other.tensors[name].shape == value.shape
            and bool(np.array_equal(other.tensors[name], value))
        }
        size = sum(network.tensors[name].nbytes for name in same)
        # A few equal bytes of two unlike networks are chance.
        if size > max(best[0], sum(v.nbytes for v in network.tensors.values()) // 2):
            best = (size, index, same)
    return best[1], best[2]


def is_weight(name: str) -> bool:
    """Whether networks may share a tensor: others may be absent, which says something."""
    return name.endswith(".weight")


def write_cascade(path: str | Path, bundle: CascadeBundle) -> str:
    """Writes a cascade's bundle, atomically. Returns its digest.

    Raises:
        BundleError: if the file cannot be written.
    """
    write_atomically(Path(path), bundle.data, BundleError)
    return bundle.digest
