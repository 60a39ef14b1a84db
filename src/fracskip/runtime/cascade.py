"""A cascade of networks, as a value in Python."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from numpy.typing import NDArray

from fracskip.config import ImageConfig
from fracskip.operating import Prediction
from fracskip.runtime.cascade_bundle import CascadeBundle, CascadePlan, write_cascade
from fracskip.runtime.inputs import Images
from fracskip.runtime.session import InferenceSession


class Cascade:
    """A cascade of networks, as `fracskip.cascade` makes it.

    Args:
        bundle: What it is; `fracskip.save` and `fracskip.export` write it.
    """

    def __init__(self, bundle: CascadeBundle) -> None:
        self.bundle = bundle

    @property
    def plan(self) -> CascadePlan:
        """Its networks, members and operating points."""
        return self.bundle.plan

    @property
    def digest(self) -> str:
        """Of the bundle."""
        return self.bundle.digest

    @property
    def class_names(self) -> tuple[str, ...]:
        """What a logit's index stands for."""
        return self.plan.class_names

    @property
    def image(self) -> ImageConfig:
        """Size, channels and normalisation of the images that are handed to it."""
        return self.plan.image

    def session(
        self,
        threads: int = 1,
        engine: Literal["auto", "native", "portable"] = "auto",
        isa: str = "auto",
    ) -> InferenceSession:
        """A session that runs it; see `InferenceSession`."""
        return InferenceSession.of(self.bundle, threads, engine, isa)

    @cached_property
    def _own(self) -> InferenceSession:
        return self.session()

    def run(self, images: Images, **arguments: Any) -> Prediction[NDArray[Any]]:
        """Classifies images on one thread; see `InferenceSession.run`."""
        return self._own.run(images, **arguments)

    def save(self, path: str | Path) -> str:
        """Writes the bundle; see `runtime.cascade.write_cascade`."""
        return write_cascade(path, self.bundle)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.plan.name!r}, points={len(self.plan.points)})"
