"""What can be evaluated: a network in torch, or a bundle in a session."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, Union

from numpy.typing import NDArray

from fracskip.config import ImageConfig
from fracskip.cost import NetworkProfile
from fracskip.machine import cores, describe_processor
from fracskip.operating import Prediction
from fracskip.options import Option, OptionSet
from fracskip.runtime import InferenceSession
from fracskip.runtime.cascade import Cascade

if TYPE_CHECKING:
    from fracskip.dynamic import DynamicNetwork

Network: TypeAlias = Union["DynamicNetwork", InferenceSession, Cascade]


@dataclass(frozen=True)
class ModelInfo:
    """What network is evaluated.

    Attributes:
        model: The backbone.
        digest: Of the checkpoint, '' if it was never saved.
        options: What decisions stand for.
        profile: MACs.
        image: Size, channels and normalisation of its images.
        class_names: What logits stand for.
        quant: Quantisation scheme.
        gate: Kind of gate, or 'none' for a static network.
        target: The computation share it was trained for.
        budgets: The smallest and the largest budget that it takes; None if it takes none.
        device: What executes it, in words.
    """

    model: str
    digest: str
    options: OptionSet
    profile: NetworkProfile
    image: ImageConfig
    class_names: tuple[str, ...]
    quant: str
    gate: str
    target: float | None
    budgets: tuple[float, float] | None
    device: str

    @property
    def is_static(self) -> bool:
        """Whether there is nothing to decide."""
        return self.gate == "none"


class Predictor(Protocol):
    """What an evaluation asks of a network."""

    @property
    def info(self) -> ModelInfo:
        """What network it is."""
        ...

    def classify(
        self,
        images: NDArray[Any],
        force: Option | int | str | None = None,
        budget: float | None = None,
        normalised: bool = False,
    ) -> Prediction[NDArray[Any]]:
        """Classifies a batch.

        Args:
            images: uint8 (B, H, W, C); a network in torch also takes normalised floats
                (B, C, H, W).
            force: Execute every block at this option instead of asking the gates, by one member.
            budget: Target computation share, if the network takes one.
            normalised: Floats are normalised, whatever their range is.
        """
        ...


def cascade_session(net: Network) -> InferenceSession | None:
    """The session of a cascade; None for what is no cascade."""
    if isinstance(net, Cascade):
        return net.session(threads=cores())
    is_cascade = isinstance(net, InferenceSession) and net.cascade is not None
    return net if is_cascade else None  # type: ignore[return-value]


def predictor_of(net: Network) -> Predictor:
    """Makes a network of either kind ready for evaluation.

    Raises:
        ConfigError: if it is a cascade, which is no one network.
    """
    if isinstance(net, Cascade):
        net = net.session()
    if isinstance(net, InferenceSession):
        return SessionPredictor(net)
    from fracskip.evaluation.network import NetworkPredictor

    return NetworkPredictor(net)


class SessionPredictor:
    """An exported network on an engine. In records it goes by its checkpoint's digest."""

    def __init__(self, session: InferenceSession) -> None:
        self._session = session

    @property
    def info(self) -> ModelInfo:
        """See `Predictor`."""
        session, plan = self._session, self._session.plan
        engine = f"{session.engine} engine ({session.isa})"
        return ModelInfo(
            model=plan.name,
            digest=plan.source or session.digest,
            options=session.options,
            profile=session.profile,
            image=session.image,
            class_names=session.class_names,
            quant="lsq",
            gate="none" if plan.gate is None else plan.gate.kind,
            target=plan.operating_points.target,
            budgets=plan.budgets,
            device=f"{describe_processor(session.threads)}, {engine}",
        )

    def classify(
        self,
        images: NDArray[Any],
        force: Option | int | str | None = None,
        budget: float | None = None,
        normalised: bool = False,
    ) -> Prediction[NDArray[Any]]:
        """See `Predictor`."""
        session = self._session
        forced = None if force is None else session.forced(force, len(images))
        return session.run(images, budget=budget, decisions=forced, normalised=normalised)
