"""Files that hold integers where nothing but integers is executed."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from fracskip import checkpoint
from fracskip.dynamic import DynamicNetwork
from fracskip.dynamic.packing import pack, unpack
from fracskip.errors import CheckpointError

Make = Callable[..., DynamicNetwork]
INT8 = {"stream": "int8", "stem": "full", "head": "full"}
OWN: dict[str, Any] = {
    "options": ["skip", "2", "4", "8"],
    "quant": {**INT8, "weights": "per_option"},
}
ALONE: dict[str, Any] = {"options": ["4"], "target": None, "quant": INT8}
BRANCHES = [f"layer{stage}.0.conv{index}" for stage in (2, 3) for index in (1, 2)]


def packed_names(state: dict[str, torch.Tensor]) -> list[str]:
    return [name for name, value in state.items() if value.dtype == torch.int8]


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        (OWN, ["weight", "option_weight.0", "option_weight.1"]),
        (ALONE, ["weight"]),
        ({**OWN, "options": ["skip", "4", "full"]}, ["option_weight.0"]),
        ({**OWN, "options": ["skip", "4", "12"]}, ["option_weight.0"]),
    ],
)
def test_a_packed_network_computes_the_same_to_the_bit(
    make_net: Make, changes: dict[str, Any], names: list[str], tmp_path: Path
) -> None:
    net = make_net(**changes)
    path = tmp_path / "packed.safetensors"
    digest = checkpoint.save(net, path, {"by": "me"}, packed=True)
    loaded = checkpoint.load(path)
    assert (loaded.spec, loaded.digest, loaded.notes) == (net.spec, digest, {"by": "me"})

    wanted = {f"backbone.{branch}.{name}" for branch in BRANCHES for name in names}
    found = set(packed_names(load_file(path)))
    assert wanted <= found
    # Besides these only what an int8 stream adds: the first block and the projections, at 8 bits.
    others = {name.removesuffix(".weight") for name in found - wanted}
    assert others == {
        *("backbone.layer1.0.conv1", "backbone.layer1.0.conv2"),
        *("backbone.layer2.0.downsample.0", "backbone.layer3.0.downsample.0"),
    }

    images = torch.randn(5, 3, *net.spec.image.size)
    for option in range(len(net.options)):
        path_taken = torch.full((5, len(net.blocks)), option)
        with torch.inference_mode():
            before, after = (each(images, decisions=path_taken) for each in (net, loaded))
        assert torch.equal(before.logits, after.logits), option


def test_packing_again_changes_nothing(make_net: Make) -> None:
    net = make_net(**OWN)
    once = pack(net)
    net.load_state_dict(unpack(net, once))
    again = pack(net)
    assert all(torch.equal(once[name], again[name]) for name in once)


def test_weights_that_several_options_share_are_kept(make_net: Make, tmp_path: Path) -> None:
    net = make_net(options=["skip", "4", "8"])
    checkpoint.save(net, tmp_path / "a.safetensors")
    checkpoint.save(net, tmp_path / "b.safetensors", packed=True)
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


def damaged(
    make_net: Make, folder: Path, change: Callable[[dict[str, torch.Tensor]], None]
) -> Path:
    net, path = make_net(**OWN), folder / "net.safetensors"
    state = pack(net)
    change(state)
    meta = {"spec": net.spec.model_dump(mode="json"), "notes": {}}
    checkpoint.write_package(path, checkpoint.SCHEMA, meta, state)
    return path


STEPS = "backbone.layer2.0.conv1.quantiser.weight_step"
HELD = "backbone.layer2.0.conv1.weight"


def test_integers_without_steps_are_refused(make_net: Make, tmp_path: Path) -> None:
    def lost(state: dict[str, torch.Tensor]) -> None:
        del state[STEPS]

    with pytest.raises(CheckpointError, match=r"1 missing \(.*conv1.quantiser.weight_step"):
        checkpoint.load(damaged(make_net, tmp_path, lost))

    def fewer(state: dict[str, torch.Tensor]) -> None:
        state[STEPS] = state[STEPS][:, :5]

    with pytest.raises(CheckpointError, match="weight_step has shape"):
        checkpoint.load(damaged(make_net, tmp_path, fewer))


def test_integers_are_refused_where_none_belong(make_net: Make, tmp_path: Path) -> None:
    def rounded(state: dict[str, torch.Tensor]) -> None:
        state["backbone.fc.weight"] = state["backbone.fc.weight"].to(torch.int8)

    with pytest.raises(
        CheckpointError, match=r"fc.weight holds torch.int8, .* needs torch.float32"
    ):
        checkpoint.load(damaged(make_net, tmp_path, rounded))

    def squeezed(state: dict[str, torch.Tensor]) -> None:
        state[HELD] = state[HELD][:, :, :1]

    with pytest.raises(CheckpointError, match=r"conv1\.weight has shape"):
        checkpoint.load(damaged(make_net, tmp_path, squeezed))
