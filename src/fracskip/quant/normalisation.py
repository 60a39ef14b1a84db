"""BatchNorm for options: one set of statistics and affine terms for each.

Beyond the backbone stage the statistics stand still (an option's are the plain network's, or
estimated on images), so a BatchNorm is a gain and an offset per channel. They fold into the
convolution before it, in training as in the deployed engine: no pass over the activations, no
noise from small groups of images, and grouping images cannot change what they compute.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fracskip.options import Option, OptionSet


@torch.no_grad()
def take_statistics(norm: nn.BatchNorm2d, z: Tensor) -> None:
    """Gives a plain norm the statistics of what it sees, (B, C, H, W)."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    norm.running_mean.copy_(z.mean((0, 2, 3)))
    # One value has no variance to estimate.
    norm.running_var.copy_(z.var((0, 2, 3), correction=min(1, z.numel() // z.shape[1] - 1)))


@dataclass(frozen=True)
class Moments:
    """What a norm sees, per channel.

    Attributes:
        mean: (C,).
        square: The mean square, (C,).
        count: Of how many values.
    """

    mean: Tensor
    square: Tensor
    count: int

    @classmethod
    def of(cls, z: Tensor) -> Moments:
        """Those of one batch, (B, C, H, W)."""
        return cls(z.mean((0, 2, 3)), z.square().mean((0, 2, 3)), z.numel() // z.shape[1])

    @classmethod
    def pooled(cls, parts: Sequence[Moments]) -> Moments:
        """Those of all values together; at least one part."""
        count = sum(part.count for part in parts)
        means = [part.mean * (part.count / count) for part in parts]
        squares = [part.square * (part.count / count) for part in parts]
        return cls(torch.stack(means).sum(0), torch.stack(squares).sum(0), count)

    @property
    def var(self) -> Tensor:
        """The biased variance, (C,)."""
        return (self.square - self.mean.square()).clamp_min(0)


# Added to the variances that are compared, as a share of the plain network's own: a channel that
# hardly varies on the images given says nothing of how rounding scales it.
FLOOR = 1 / 64


class FractionalBatchNorm2d(nn.BatchNorm2d):
    """A frozen-statistics BatchNorm with one row of terms per executed option.

    The top option's row keeps the parent's names (weight, bias, running_mean, running_var), so a
    plain network's state loads into it; the other rows are `option_*`, of shape (rows, C).
    """

    # What it has beside a plain norm's.
    OWN = ("option_mean", "option_var", "option_weight", "option_bias")

    option_mean: Tensor
    option_var: Tensor
    option_weight: nn.Parameter
    option_bias: nn.Parameter
    _rows: dict[Option, int]
    _shared: bool
    _seen: list[Moments]
    _plain: list[Moments]

    @classmethod
    def of(cls, norm: nn.BatchNorm2d, options: OptionSet, shared: bool) -> FractionalBatchNorm2d:
        """Converts a plain BatchNorm.

        Args:
            norm: The BatchNorm, with affine terms and running statistics.
            options: The option set.
            shared: One row for all options (the paper's) instead of one each.
        """
        new = cls(norm.num_features, norm.eps, device=norm.weight.device)
        own = new.state_dict()
        new.load_state_dict({name: norm.state_dict()[name] for name in own})
        executed = [option for option in options if not option.is_skip]
        lower = [] if shared else executed[:-1]
        new._rows = {option: row for row, option in enumerate(lower)}
        rows = len(lower)
        new.option_weight = nn.Parameter(norm.weight.detach().repeat(rows, 1))
        new.option_bias = nn.Parameter(norm.bias.detach().repeat(rows, 1))
        assert norm.running_mean is not None
        assert norm.running_var is not None
        new.register_buffer("option_mean", norm.running_mean.repeat(rows, 1))
        new.register_buffer("option_var", norm.running_var.repeat(rows, 1))
        new._shared = shared
        new._seen, new._plain = [], []
        return new

    def plain(self) -> nn.BatchNorm2d:
        """The plain norm that it was made of."""
        norm = nn.BatchNorm2d(self.num_features, self.eps, device=self.weight.device)
        norm.load_state_dict({name: self.state_dict()[name] for name in norm.state_dict()})
        return norm.train(self.training)

    @staticmethod
    def converts(norm: nn.Module) -> bool:
        """Whether a module is a norm that `of` takes."""
        return isinstance(norm, nn.BatchNorm2d) and norm.affine and norm.track_running_stats

    def normalise(self, x: Tensor, option: Option) -> Tensor:
        """An option's norm where it folds into no convolution, (B, C, H, W)."""
        gain, bias = self.folded(option)
        return x * gain[:, None, None] + bias[:, None, None]

    def owns_statistics(self, option: Option) -> bool:
        """Whether the option has statistics to estimate: full execution keeps the backbone's."""
        return option.is_quantised and not self._shared

    def _terms(self, option: Option) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        row = self._rows.get(option)
        if row is None:
            assert self.running_mean is not None
            assert self.running_var is not None
            return self.weight, self.bias, self.running_mean, self.running_var
        return (
            self.option_weight[row],
            self.option_bias[row],
            self.option_mean[row],
            self.option_var[row],
        )

    def folded(self, option: Option) -> tuple[Tensor, Tensor]:
        """The option's gain and offset per channel, (C,) each."""
        weight, bias, mean, var = self._terms(option)
        gain = weight * torch.rsqrt(var + self.eps)
        return gain, bias - mean * gain

    @torch.no_grad()
    def folded64(self, option: Option) -> tuple[Tensor, Tensor]:
        """`folded` in float64: what a deployed multiplier is made of."""
        weight, bias, mean, var = (term.double() for term in self._terms(option))
        gain = weight / (var + self.eps).sqrt()
        return gain, bias - mean * gain

    @torch.no_grad()
    def record(self, z: Tensor) -> None:
        """Takes note of a batch (B, C, H, W) as the plain network's norm sees it.

        Until `forget`, `estimate` takes the same batches in the same order.
        """
        self._plain.append(Moments.of(z))

    def forget(self) -> None:
        """Ends what `record` began."""
        self._plain = []

    @torch.no_grad()
    def estimate(self, z: Tensor, option: Option) -> Tensor:
        """Gathers an option's statistics and normalises by the batch's own.

        They are the values' own mean and variance. Where the plain network's batches were
        recorded, they are those by which the option's output has the mean and variance that the
        plain network's has on these images: its own statistics, moved by what rounding changes
        and not by what the images are.

        Args:
            z: The convolution's output (B, C, H, W).
            option: Whose statistics to gather; `finish_estimate` stores them.

        Returns:
            The normalised batch, (B, C, H, W).
        """
        batch = len(self._seen)
        self._seen.append(Moments.of(z))
        mean, var = self._statistics(self._seen[batch:], self._plain[batch : batch + 1])
        weight, bias, _, _ = self._terms(option)
        gain = weight * torch.rsqrt(var + self.eps)
        return z * gain[:, None, None] + (bias - mean * gain)[:, None, None]

    @torch.no_grad()
    def finish_estimate(self, option: Option) -> None:
        """Stores the statistics gathered since the last call, if any."""
        if not self._seen:
            return
        found = self._statistics(self._seen, self._plain, unbiased=True)
        for kept, value in zip(self._terms(option)[2:], found, strict=True):
            kept.copy_(value)
        self._seen = []

    def _statistics(
        self, seen: Sequence[Moments], plain: Sequence[Moments], unbiased: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Mean and variance (C,) to normalise by; see `estimate`."""
        ours = Moments.pooled(seen)
        if not plain:
            count = ours.count
            return ours.mean, ours.var * (count / max(count - 1, 1) if unbiased else 1)
        assert self.running_mean is not None
        assert self.running_var is not None
        theirs, own = Moments.pooled(plain), self.running_var + self.eps
        ratio = (ours.var + FLOOR * own) / (theirs.var + FLOOR * own)
        mean = ours.mean - ratio.sqrt() * (theirs.mean - self.running_mean)
        return mean, (own * ratio - self.eps).clamp_min(0)
