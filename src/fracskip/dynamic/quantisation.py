"""From a trained network and some images to integers, without training or labels."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from torch import nn

from fracskip.config import ImageConfig, QuantConfig
from fracskip.dynamic.calibration import batches_of
from fracskip.dynamic.convert import convert
from fracskip.dynamic.network import DynamicNetwork
from fracskip.options import Option, OptionSet

INTEGERS = QuantConfig(weights="per_option", stream="int8", stem="8", head="8")


def quantize(
    module: nn.Module,
    images: Any,
    *,
    options: OptionSet | str | Iterable[Option | int | str] = (8,),
    size: int | tuple[int, int] | None = None,
    image: ImageConfig | None = None,
    class_names: Sequence[str] | None = None,
    name: str | None = None,
) -> DynamicNetwork:
    """Quantises a trained network after training: some images, no labels, no gradient.

    All convolutions and linear layers become integers: weights w = s q with one step s an output
    channel, activations x = s (q - z) with one step and one zero point a tensor (z = 0 where values
    are never negative), as in Jacob et al., "Quantization and Training of Neural Networks for
    Efficient Integer-Arithmetic-Only Inference", CVPR 2018. Values between blocks are 8-bit levels
    themselves. Steps are those of least squared error, sum (x - s clamp(round(x / s)))^2, of 64
    shares of the range.

    What rounding then shifts is taken back where that brings the logits closer to the network's on
    images held out (`fracskip.dynamic.estimation.calibrate`): the mean of each layer's output by
    its offset, b <- b + E[y] - E[y_quantised], and the variance where there is a BatchNorm, layer
    after layer, with weights rounded to the nearest or so that outputs change least
    (`fracskip.quant.rounding`). `net.notes["quantisation"]` says what was taken.

    A network without residual blocks is executed at 8 bits as a whole.

    Args:
        module: In evaluation mode, float32; it is left as it is.
        images: Calibration images, of the kind that the network is for: uint8 pixels
            (N, H, W, C), which are brought to the network's size; normalised floats
            (N, C, H, W); or batches of either, with or without labels. 64 to 512 are good.
        options: Of residual blocks; all else is executed at 8 bits. One option makes a static
            network; of several, gates choose, which are yet to be trained (`fracskip.fit`).
        size: Height and width (one number: of a square), in place of the image's.
        image: What the network takes. If not given: the images' own size, normalised as a network
            of timm says by itself, else as ImageNet's are.
        class_names: Of the logits; numbers if not given.
        name: Of the model, such as 'torchvision/resnet50', by which `load` makes it anew.

    Raises:
        ConfigError: if the network can't be converted.
        DataError: if images do not fit, or there are none.
    """
    batches, image = batches_of(module, images, image, size)
    net = convert(module, options, quant=INTEGERS, image=image, class_names=class_names, name=name)
    taken = net.calibrate(batches)
    net.notes = {"quantisation": {"images": sum(map(len, batches)), "taken": taken}}
    return net
