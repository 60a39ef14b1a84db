"""After training: bringing the realised cost to the target."""

from __future__ import annotations

from fracskip.cost import account
from fracskip.data import ImageSet
from fracskip.dynamic import DynamicNetwork
from fracskip.evaluation import predict

WIDEST_LEAN = 64.0
ROUNDS = 16


def meet_target(net: DynamicNetwork, data: ImageSet, target: float, images: int = 1000) -> float:
    """Finds the lean (see `ModelSpec`) at which the mean cost is nearest to the target.

    Training steers the mean cost of noisy decisions by a lagging price, so it ends near the target,
    seldom on it. The gates' logits say which decisions are close; leaning moves those first.

    Args:
        net: The network; its `spec.lean` is set.
        data: Validation images; labels are not used.
        target: Computation share.
        images: How many of them to use.

    Returns:
        The computation share that the network then has on these images.
    """
    pixels = data.images[:images]

    def cost_at(lean: float) -> float:
        net.spec = net.spec.model_copy(update={"lean": lean})
        return account(predict(net, pixels).decisions, net.options, net.profile).cp

    tried = {0.0: cost_at(0.0)}
    low, high = (0.0, WIDEST_LEAN) if tried[0.0] < target else (-WIDEST_LEAN, 0.0)
    for _ in range(ROUNDS):
        lean = (low + high) / 2
        tried[lean] = cost_at(lean)
        low, high = (lean, high) if tried[lean] < target else (low, lean)
    # Nearest to the target; of equals the one that changes least.
    best = min(tried, key=lambda lean: (abs(tried[lean] - target), abs(lean)))
    net.spec = net.spec.model_copy(update={"lean": best})
    return tried[best]
