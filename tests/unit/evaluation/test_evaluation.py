import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fracskip.checkpoint import load
from fracskip.config import ImageConfig
from fracskip.cost import account
from fracskip.data import ImageSet, load_split
from fracskip.data.store import digest
from fracskip.dynamic import DynamicNetwork, preprocess
from fracskip.errors import ConfigError, DataError
from fracskip.evaluation import evaluate, predict
from fracskip.options import Option
from fracskip.report.records import EvaluationRecord

MakeNet = Callable[..., DynamicNetwork]


@pytest.fixture
def data(pictures: Path, net: DynamicNetwork) -> ImageSet:
    return load_split(f"folder:{pictures}", "train", net.spec.image)


@pytest.fixture
def record(checkpoint_file: Path, data: ImageSet) -> dict[str, Any]:
    return evaluate(load(checkpoint_file), data, name="tiny", examples=40)


# -- predict --------------------------------------------------------------------------------------


def test_predictions_are_the_networks(net: DynamicNetwork, data: ImageSet) -> None:
    found = predict(net, data.images)
    with torch.inference_mode():
        out = net(preprocess(data.images, net.spec.image))
    np.testing.assert_allclose(found.probabilities, out.logits.softmax(1).numpy(), atol=1e-6)
    np.testing.assert_array_equal(found.decisions, out.decisions.numpy())
    np.testing.assert_array_equal(found.predicted, out.logits.argmax(1).numpy())
    np.testing.assert_allclose(found.probabilities.sum(1), 1, atol=1e-5)
    # The fixture's network is worth looking at: all options and all classes occur.
    assert set(np.unique(found.decisions)) == {0, 1, 2}
    assert set(np.unique(found.predicted)) == {0, 1, 2}


@pytest.mark.parametrize("batch_size", [1, 7, 47, 48, 49, 1000])
def test_the_batch_size_does_not_change_results(
    net: DynamicNetwork, data: ImageSet, batch_size: int
) -> None:
    whole, parts = predict(net, data.images), predict(net, data.images, batch_size=batch_size)
    np.testing.assert_array_equal(parts.decisions, whole.decisions)
    np.testing.assert_allclose(parts.probabilities, whole.probabilities, atol=1e-5)


def test_progress_counts_images(net: DynamicNetwork, data: ImageSet) -> None:
    done: list[int] = []
    predict(net, data.images, batch_size=20, progress=done.append)
    assert done == [20, 20, 8]


@pytest.mark.parametrize("option", ["skip", 4, Option(32)])
def test_every_block_at_one_option(net: DynamicNetwork, data: ImageSet, option: Any) -> None:
    found = predict(net, data.images, force=option)
    assert set(np.unique(found.decisions)) == {net.options.index(option)}


def test_an_option_that_the_network_has_not(net: DynamicNetwork, data: ImageSet) -> None:
    with pytest.raises(ConfigError, match="option '8' is not in this set; it has skip, 4, full"):
        predict(net, data.images, force=8)


def test_no_images(net: DynamicNetwork, data: ImageSet) -> None:
    with pytest.raises(ConfigError, match=r"images of shape \(0, 3, 8, 8\).*at least one image"):
        predict(net, data.images[:0])
    with pytest.raises(ConfigError, match="at least one image"):
        evaluate(net, data.subset([]))


def test_images_that_do_not_fit(net: DynamicNetwork, data: ImageSet) -> None:
    with pytest.raises(DataError, match=r"uint8 \(images, height, width, 3\) or normal"):
        predict(net, data.images[..., :1])
    with pytest.raises(DataError, match="float32 do not fit"):
        predict(net, data.images.astype(np.float32))


def test_a_network_in_training_mode_is_evaluated(net: DynamicNetwork, data: ImageSet) -> None:
    before = predict(net, data.images).probabilities
    net.train()
    np.testing.assert_array_equal(predict(net, data.images).probabilities, before)
    assert not net.training


# -- the record -----------------------------------------------------------------------------------


def test_the_record_is_plain_json_that_a_report_accepts(record: dict[str, Any]) -> None:
    again = json.loads(json.dumps(record, allow_nan=False))
    assert again == record
    parsed = EvaluationRecord.model_validate(again)
    assert parsed.images == 48
    assert parsed.option_labels == ("skip", "4", "full")
    assert parsed.digest == record["checkpoint_digest"]


def test_what_was_measured_is_named(
    record: dict[str, Any], checkpoint_file: Path, pictures: Path
) -> None:
    weights = load(checkpoint_file).digest
    assert record["checkpoint"] == {
        "name": "tiny",
        "digest": weights,
        "model": "resnet8",
        "options": ["skip", "4", "full"],
        "quant": "lsq",
        "gate": "recurrent",
        "target": 0.1,
        "macs": load(checkpoint_file).profile.backbone_macs,
    }
    assert record["checkpoint_digest"] == weights
    data, image = record["data"], load(checkpoint_file).spec.image
    assert (data["name"], data["split"]) == (pictures.name, "train")
    assert ImageConfig.model_validate(data["image"]) == image
    assert data["digest"] == digest(load_split(f"folder:{pictures}", "train", image).images)
    assert set(record["versions"]) == {"python", "fracskip", "torch", "numpy"}


def test_the_record_agrees_with_the_decisions(
    record: dict[str, Any], net: DynamicNetwork, data: ImageSet
) -> None:
    """Every number again, from the decisions, the slow way."""
    found = predict(net, data.images)
    costs = {"skip": 0.0, "4": 1 / 64, "full": 1.0}
    labels = list(costs)
    paths = [[labels[choice] for choice in row] for row in found.decisions]
    flat = [label for path in paths for label in path]
    right = [bool(a == b) for a, b in zip(found.predicted, data.labels, strict=True)]

    assert record["images"] == 48
    assert record["accuracy"] == pytest.approx(sum(right) / 48)
    assert record["cp"] == pytest.approx(sum(costs[label] for label in flat) / len(flat))
    assert record["option_share"] == pytest.approx(
        {label: flat.count(label) / len(flat) for label in labels}
    )

    # BitOps: what every image executes at 32 bits, and the branches at their squared widths.
    profile = net.profile
    branches = [block.branch_macs for block in profile.gated]
    fixed = profile.backbone_macs - sum(branches) + profile.gate_macs
    executed = [
        fixed + sum(costs[label] * macs for label, macs in zip(path, branches, strict=True))
        for path in paths
    ]
    assert record["bitops_ratio"] == pytest.approx(sum(executed) / 48 / profile.backbone_macs)

    entropies = []
    for index, block in enumerate(record["blocks"]):
        column = [path[index] for path in paths]
        shares = {label: column.count(label) / 48 for label in labels}
        assert block["option_share"] == pytest.approx(shares)
        entropies.append(-sum(p * np.log2(p) for p in shares.values() if p))
        assert block["entropy_bits"] == pytest.approx(entropies[-1])
        assert block["macs"] == branches[index]
    assert [block["name"] for block in record["blocks"]] == ["layer2.0", "layer3.0"]
    assert record["decision_entropy_bits"] == pytest.approx(np.mean(entropies))
    assert record["decision_entropy_bits"] > 0.5

    for label, row in enumerate(record["classes"]):
        members = [index for index in range(48) if data.labels[index] == label]
        inside = [name for index in members for name in paths[index]]
        assert row["name"] == data.class_names[label]
        assert row["images"] == len(members) == 16
        assert row["accuracy"] == pytest.approx(np.mean([right[index] for index in members]))
        assert row["cp"] == pytest.approx(np.mean([costs[name] for name in inside]))
        assert row["option_share"] == pytest.approx(
            {name: inside.count(name) / len(inside) for name in labels}
        )


def test_the_record_agrees_with_itself(record: dict[str, Any]) -> None:
    costs = {"skip": 0.0, "4": 1 / 64, "full": 1.0}

    def mean_cost(shares: dict[str, float]) -> float:
        return sum(costs[label] * share for label, share in shares.items())

    shares = [record["option_share"]]
    shares += [row["option_share"] for row in record["blocks"] + record["classes"]]
    assert all(sum(share.values()) == pytest.approx(1) for share in shares)
    assert mean_cost(record["option_share"]) == pytest.approx(record["cp"])
    assert sum(row["images"] for row in record["classes"]) == record["images"]
    for key in ("accuracy", "cp"):
        weighted = sum(row["images"] * row[key] for row in record["classes"])
        assert weighted / record["images"] == pytest.approx(record[key])
    for row in record["classes"]:
        assert mean_cost(row["option_share"]) == pytest.approx(row["cp"])
    by_block = [mean_cost(row["option_share"]) for row in record["blocks"]]
    assert np.mean(by_block) == pytest.approx(record["cp"])


def test_static_points(record: dict[str, Any], net: DynamicNetwork, data: ImageSet) -> None:
    points = {point["option"]: point for point in record["static"]}
    assert list(points) == ["4", "full"]  # to skip everything is no network
    profile = net.profile
    branches = sum(block.branch_macs for block in profile.gated)
    for label, cost in (("4", 1 / 64), ("full", 1.0)):
        forced = predict(net, data.images, force=label)
        point = points[label]
        assert point["accuracy"] == pytest.approx((forced.predicted == data.labels).mean())
        assert point["cp"] == pytest.approx(cost)
        assert point["seconds"] > 0
        # Without gates: a static network has none.
        executed = profile.backbone_macs - branches + cost * branches
        assert point["bitops_ratio"] == pytest.approx(executed / profile.backbone_macs)
    assert points["full"]["bitops_ratio"] == pytest.approx(1.0)
    assert evaluate(net, data, static=False)["static"] == []


def test_examples_are_the_cheapest_and_the_dearest_images(
    record: dict[str, Any], net: DynamicNetwork, data: ImageSet
) -> None:
    found = predict(net, data.images)
    image_cp = np.array(net.options.costs)[found.decisions].mean(1)
    cheapest, dearest = record["examples"]["cheapest"], record["examples"]["dearest"]
    assert len({item["index"] for item in cheapest}) == len(cheapest) == 40
    assert len({item["index"] for item in dearest}) == len(dearest) == 40
    assert [item["cp"] for item in cheapest] == sorted(image_cp)[:40]
    assert [item["cp"] for item in dearest] == sorted(image_cp, reverse=True)[:40]
    assert len({item["cp"] for item in cheapest}) > 2
    for item in cheapest + dearest:
        index = item["index"]
        assert item["label"] == data.class_names[data.labels[index]]
        assert item["predicted"] == data.class_names[found.predicted[index]]
        assert item["cp"] == pytest.approx(image_cp[index])
        assert item["allocation"] == [
            net.options.labels[choice] for choice in found.decisions[index]
        ]


def test_both_members_of_a_cascade_are_recorded(
    make_net: Callable[..., DynamicNetwork], data: ImageSet
) -> None:
    net = make_net(multiplier_curve=((0.02, 3.0), (0.5, -3.0)), target=0.1)
    sure = predict(net, data.images, budget=0.05).probabilities.max(1)
    least = float(np.median(sure))
    points = ((0.06, 0.05, 0.4, least), (0.3, 0.05, 0.4, least))
    net.operating_points = net.operating_points.changed(cascade=points)
    record = evaluate(net, data, static=False, examples=len(data))
    found = predict(net, data.images)
    assert record["escalation_rate"] == found.escalated.mean() == (sure < np.float32(least)).mean()
    cost = account(found.executions, net.options, net.profile)
    assert (record["cp"], record["bitops_ratio"]) == (cost.cp, cost.bitops_ratio)
    executed = np.concatenate([each.decisions for each in found.executions])
    assert len(executed) == len(data) + found.escalated.sum()
    skipped = float((executed == 0).mean())
    assert record["option_share"]["skip"] == pytest.approx(skipped)
    labels = net.options.labels
    for item in record["examples"]["dearest"]:
        row = item["index"]
        assert item["allocation"] == [labels[choice] for choice in found.decisions[row]]
        first = [labels[choice] for choice in found.executions[0].decisions[row]]
        assert item["first_allocation"] == (first if found.escalated[row] else None)
        assert item["cp"] == pytest.approx(cost.image_cp[row])


def test_more_examples_than_images_and_none(net: DynamicNetwork, data: ImageSet) -> None:
    few = data.subset([4, 2, 9])
    record = evaluate(net, few, static=False, examples=12)
    assert sorted(item["index"] for item in record["examples"]["cheapest"]) == [0, 1, 2]
    assert record["examples"]["dearest"] == record["examples"]["cheapest"][::-1]
    assert evaluate(net, few, static=False, examples=0)["examples"] == {
        "cheapest": [],
        "dearest": [],
    }


def test_grey_images_that_are_not_square(make_net: MakeNet) -> None:
    grey = {"size": [8, 12], "channels": 1, "mean": [0.3], "std": [0.4]}
    net = make_net(image=grey)
    draw = np.random.RandomState(0)
    images = draw.randint(0, 256, (6, 8, 12, 1)).astype(np.uint8)
    labels = np.array([0, 1, 2, 0, 1, 2], dtype=np.int64)
    data = ImageSet(images, labels, net.spec.class_names, "Grey", "test", "made up")
    record = evaluate(net, data)
    EvaluationRecord.model_validate(record)
    assert record["data"]["digest"] == digest(images)
    assert record["data"]["image"] == grey


def test_a_network_without_gates(make_net: MakeNet, data: ImageSet) -> None:
    record = evaluate(make_net(options=["8"], target=None), data)
    EvaluationRecord.model_validate(record)
    assert record["checkpoint"]["gate"] == "none"
    assert record["checkpoint"]["target"] is None
    assert record["cp"] == pytest.approx(1 / 16)
    assert record["option_share"] == {"8": 1.0}
    assert record["decision_entropy_bits"] == 0
    assert record["static"] == []


def test_one_image_and_a_class_that_does_not_occur(net: DynamicNetwork, data: ImageSet) -> None:
    record = evaluate(net, data.subset([int(np.flatnonzero(data.labels == 1)[0])]))
    EvaluationRecord.model_validate(record)
    assert record["images"] == 1
    assert [(row["name"], row["images"]) for row in record["classes"]] == [("green", 1)]
    assert record["decision_entropy_bits"] == 0


def test_progress_counts_every_pass(net: DynamicNetwork, data: ImageSet) -> None:
    done: list[int] = []
    evaluate(net, data, progress=done.append)
    assert sum(done) == 3 * 48  # the gates' own, and two options


def test_a_network_that_was_never_saved_has_no_digest(net: DynamicNetwork, data: ImageSet) -> None:
    record = evaluate(net, data, static=False)
    assert record["checkpoint_digest"] == ""
    assert record["checkpoint"]["name"] == "resnet8"


# -- any loader ------------------------------------------------------------------------------------


def loader(net: DynamicNetwork, data: ImageSet, size: int) -> list[tuple[torch.Tensor, Any]]:
    """The set's images as a network takes them, batch by batch."""
    images = preprocess(data.images, net.spec.image)
    labels = torch.from_numpy(data.labels)
    return list(zip(images.split(size), labels.split(size), strict=True))


def test_batches_are_evaluated_as_a_set_is(net: DynamicNetwork, data: ImageSet) -> None:
    of_set, of_batches = evaluate(net, data, examples=0), evaluate(net, loader(net, data, 7))
    theirs = ("data", "seconds", "static", "classes")
    for key in of_set.keys() - set(theirs):
        assert of_batches[key] == of_set[key], key
    assert of_batches["data"] == {"name": "batches", "split": "given"}
    for one, other in zip(of_set["static"], of_batches["static"], strict=True):
        assert one["accuracy"] == other["accuracy"]
    by_class = [row["accuracy"] for row in of_batches["classes"]]
    assert by_class == [row["accuracy"] for row in of_set["classes"]]
    EvaluationRecord.model_validate(of_batches)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda batches: iter(()), "3 passes over the data are needed, and an iterator"),
        (lambda batches: [], "gave no batch; an iterator can be gone through once only"),
        (lambda batches: [(x, y[:1]) for x, y in batches], r"shape \(1,\) .* do not fit 7 images"),
        (lambda batches: [(x, y.float()) for x, y in batches], "one class number each"),
        (lambda batches: [(x, y + 1) for x, y in batches], "do not fit 3 classes: use 0 to 2"),
        (lambda batches: [(x[:, :2], y) for x, y in batches], "float32 do not fit: uint8"),
    ],
)
def test_batches_that_do_not_fit_are_refused(
    net: DynamicNetwork, data: ImageSet, spoil: Callable[[Any], Any], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        evaluate(net, spoil(loader(net, data, 7)))
