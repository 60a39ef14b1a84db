"""A network in torch, as evaluations ask it."""

from __future__ import annotations

from typing import Any

import torch
from numpy.typing import NDArray

from fracskip.devices import describe
from fracskip.dynamic import DynamicNetwork, preprocess
from fracskip.evaluation.predictor import ModelInfo
from fracskip.operating import Execution, OperatingPoints, Prediction
from fracskip.options import Option


class NetworkPredictor:
    """A dynamic network on the device where it is; it is put into evaluation mode.

    Args:
        net: The network.
        points: Operating points in place of its own.
    """

    def __init__(self, net: DynamicNetwork, points: OperatingPoints | None = None) -> None:
        self._net = net.eval()
        self._points = net.operating_points if points is None else net.checked_points(points)
        self._device = next(net.parameters()).device

    @property
    def info(self) -> ModelInfo:
        """See `fracskip.evaluation.Predictor`."""
        net, spec = self._net, self._net.spec
        return ModelInfo(
            model=spec.model.name,
            digest=net.digest,
            options=net.options,
            profile=net.profile,
            image=spec.image,
            class_names=spec.class_names,
            quant=spec.quant.scheme,
            gate="none" if net.gate is None else spec.gate.kind,
            target=self._points.target,
            budgets=None if net.gate is None else self._points.budgets(spec.gate.budget_input),
            device=describe(self._device),
        )

    @torch.inference_mode()
    def classify(
        self,
        images: NDArray[Any],
        force: Option | int | str | None = None,
        budget: float | None = None,
        normalised: bool = False,
    ) -> Prediction[NDArray[Any]]:
        """See `fracskip.evaluation.Predictor`."""
        net = self._net
        pixels = torch.from_numpy(images).to(self._device)
        x = preprocess(pixels, net.spec.image, normalised=normalised)
        forced = None if force is None else net.forced(force, len(x))
        out = net(x, budget=budget, decisions=forced, points=self._points)
        executions = (
            Execution(one.rows.cpu().numpy(), one.decisions.cpu().numpy()) for one in out.executions
        )
        return Prediction(
            out.logits.float().cpu().numpy(), out.cost.cpu().numpy(), tuple(executions)
        )
