"""Recorded steps do what ordinary ones do: the same weights after a few, on paths of all kinds."""

import copy

import pytest
import torch

from fracskip.config import recipe_from_dict
from fracskip.dynamic import DynamicNetwork
from fracskip.dynamic.path import PathForward
from fracskip.errors import ConfigError
from fracskip.models import create_model
from fracskip.training.joint import JointTraining
from fracskip.training.stages import BackboneTraining, Place, capture_backbone
from fracskip.training.supernet import SupernetTraining

CASES = {
    "own weights, int8 stream": (
        ["skip", "2", "4", "8"],
        {"stream": "int8", "weights": "own"},
    ),
    "shared weights, float stream": (["skip", "4", "8", "full"], {}),
    "own weights, float stream": (["skip", "3", "full"], {"weights": "own"}),
    "skip or full": (["skip", "full"], {}),
    "static": (["4"], {"stream": "int8"}),
    "static at the stream's width": (["8"], {"stream": "int8"}),
}

RATE = 2e-3


def _recipe(options, quant, **more):
    return recipe_from_dict(
        {
            "name": "captured",
            "options": options,
            "quant": quant,
            "model": {"name": "resnet14"},
            "supernet": {
                "epochs": 1,
                "distillation": 0.5,
                "optim": {"lr": 0.05, "warmup": 0.0, "clip_norm": 1.0},
            },
            "runtime": {"amp": "off", "device": "cpu"},
            **more,
        }
    )


def _network(recipe):
    torch.manual_seed(3)
    target = 0.1 if len(recipe.options) > 1 else None
    spec = recipe.model_spec("abcdefghij", "cifar10", target)
    net = DynamicNetwork(create_model("resnet14"), spec)
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    net.calibrate([torch.rand(16, 3, 32, 32)])
    return net.train()


def _assert_moved_alike(before, expected, found):
    moved = 0
    for name, start in before.items():
        if torch.equal(expected[name], start):
            assert torch.equal(found[name], start), name
            continue
        step = (expected[name] - start).float()
        moved += 1
        assert (found[name] - start - step).norm() < 1e-3 * step.norm() + 1e-6, name
    assert moved > 10


@pytest.mark.parametrize("case", CASES)
def test_a_recorded_step_is_an_ordinary_one(case):
    options, quant = CASES[case]
    recipe = _recipe(options, quant)
    net = _network(recipe)
    twin = copy.deepcopy(net)
    teacher = create_model("resnet14").eval()
    cpu = torch.device("cpu")
    plain = SupernetTraining(net, recipe, cpu, False, teacher)
    other = SupernetTraining(twin, recipe, cpu, False, teacher)
    step = other.capture()
    count, blocks = len(net.options), len(net.blocks)
    draw = torch.Generator().manual_seed(5)
    for index in range(4):
        before = copy.deepcopy(net.state_dict())
        images = torch.rand(8, 3, 32, 32, generator=draw)
        labels = torch.randint(0, 10, (8,), generator=draw)
        path = torch.randint(0, count, (blocks,), generator=draw)
        if index == 0:
            path[:] = 0
            path[::2] = count - 1
        out = net(images, decisions=path.expand(8, -1))
        expected = plain.learn(out.logits, images, labels, recipe.supernet, [RATE], out.cost)
        loss, right = step(images, labels, path.tolist(), RATE)
        assert (loss * 8, right) == pytest.approx((expected.loss, expected.correct), rel=1e-4)
        _assert_moved_alike(before, net.state_dict(), twin.state_dict())
        # A last bit's difference would round some value of the next step the other way.
        twin.load_state_dict(net.state_dict())


def test_momentum_is_the_optimisers():
    recipe = _recipe(["skip", "4", "8"], {"stream": "int8", "weights": "own"})
    net = _network(recipe)
    stage = SupernetTraining(net, recipe, torch.device("cpu"), False)
    images, labels = torch.rand(4, 3, 32, 32), torch.tensor([0, 1, 2, 3])
    path = [1] * len(net.blocks)
    first = stage.capture()
    first(images, labels, path, 0.05)
    twin, again = copy.deepcopy(net), copy.deepcopy(stage.optimisers[0].state_dict())
    first(images, labels, path, 0.05)
    # A run that is resumed builds its step anew, on an optimiser that was loaded.
    resumed = SupernetTraining(twin, recipe, torch.device("cpu"), False)
    resumed.optimisers[0].load_state_dict(again)
    resumed.capture()(images, labels, path, 0.05)
    for name, value in net.state_dict().items():
        assert torch.equal(twin.state_dict()[name], value), name


def test_a_backbones_step_moves_statistics_too():
    recipe = _recipe(["full"], {}, backbone={"epochs": 1, "optim": {"clip_norm": 1.0}})
    torch.manual_seed(1)
    net = create_model("resnet14").train()
    twin = copy.deepcopy(net)
    cpu = torch.device("cpu")
    plain, other = (BackboneTraining(each, recipe, cpu, False) for each in (net, twin))
    step = capture_backbone(twin, other, other.optimisers[0])
    for index in range(3):
        before = copy.deepcopy(net.state_dict())
        torch.manual_seed(index)
        images, labels = torch.rand(8, 3, 32, 32), torch.randint(0, 10, (8,))
        place = Place(0, index, 0.5)
        expected = plain.step(images, labels, place)
        loss, right = step(images, labels, [], other.lr(0.5))
        assert (loss * 8, right) == pytest.approx((expected.loss, expected.correct), rel=1e-4)
        _assert_moved_alike(before, net.state_dict(), twin.state_dict())
        # At this rate batches of eight multiply a last bit's difference from step to step.
        twin.load_state_dict(net.state_dict())


@pytest.mark.parametrize("options", [["4"], ["skip", "4", "8"]])
def test_the_joint_stage_records_shared_paths_and_static_networks(options):
    joint = {"epochs": 1, "gate_lr": 0, "optim": {"clip_norm": 1.0}}
    if len(options) > 1:
        joint |= {"paths": "shared", "anchor_rate": 0.5}
    recipe = _recipe(options, {"stream": "int8"}, joint=joint)
    net = _network(recipe)
    twin = copy.deepcopy(net)
    cpu = torch.device("cpu")
    plain = JointTraining(net, recipe, cpu, False)
    recorded = JointTraining(twin, recipe, cpu, False)
    recorded.captures = True
    for index in range(3):
        before = copy.deepcopy(net.state_dict())
        images, labels = torch.rand(8, 3, 32, 32), torch.arange(8)
        place = Place(0, index, 0.5)
        expected = plain.step(images, labels, place)
        found = recorded.step(images, labels, place)
        assert (found.loss, found.correct, found.cost) == pytest.approx(
            (expected.loss, expected.correct, expected.cost), rel=1e-4
        )
        _assert_moved_alike(before, net.state_dict(), twin.state_dict())
        twin.load_state_dict(net.state_dict())


def test_recorded_steps_are_compiled_ones():
    with pytest.raises(ConfigError, match=r"set runtime\.compile to true"):
        _recipe(["4"], {"stream": "int8"}, runtime={"capture": True})


def test_the_papers_quantiser_is_not_data():
    net = _network(_recipe(["skip", "8", "full"], {"scheme": "paper"}))
    with pytest.raises(ConfigError, match="'modern'"):
        PathForward(net)


def test_only_a_gpu_records():
    recipe = _recipe(["4"], {"stream": "int8"}, runtime={"capture": True, "compile": True})
    net = _network(recipe)
    assert not SupernetTraining(net, recipe, torch.device("cpu"), False).captures
    assert SupernetTraining(net, recipe, torch.device("cuda"), False).captures
