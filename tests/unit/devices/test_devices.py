import pytest
import torch

from fracskip import devices
from fracskip.devices import computes_in_bf16, describe, pick_device, use_bf16
from fracskip.errors import ConfigError

CPU = torch.device("cpu")


@pytest.fixture(params=[True, False], ids=["with a GPU", "without a GPU"])
def gpu(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: request.param)
    return bool(request.param)


def test_a_gpu_is_taken_where_there_is_one(gpu: bool) -> None:
    expected = "cuda" if gpu else "cpu"
    assert pick_device().type == expected
    assert pick_device("auto").type == expected


def test_the_cpu_can_always_be_had(gpu: bool) -> None:
    assert pick_device("cpu") == CPU


def test_a_gpu_that_is_not_there_is_refused(gpu: bool) -> None:
    if gpu:
        assert pick_device("cuda").type == "cuda"
        return
    with pytest.raises(ConfigError) as caught:
        pick_device("cuda")
    assert str(caught.value) == (
        "device 'cuda' was asked for, torch finds no GPU: use 'auto' or 'cpu'"
    )


@pytest.mark.parametrize("fast", [True, False])
def test_bfloat16_where_the_device_computes_in_it(
    monkeypatch: pytest.MonkeyPatch, fast: bool
) -> None:
    monkeypatch.setattr(devices, "computes_in_bf16", lambda device: fast)
    assert use_bf16("auto", CPU) is fast
    assert use_bf16("bf16", CPU) is True
    assert use_bf16("off", CPU) is False


@pytest.mark.parametrize(
    ("capabilities", "expected"),
    [
        ({"avx512_bf16": True, "amx_bf16": False}, True),
        ({"avx512_bf16": False, "amx_bf16": True}, True),
        ({"bf16": True}, True),  # ARM
        ({"avx512_bf16": False, "amx_bf16": False, "avx2": True}, False),
        ({}, False),
    ],
)
def test_what_a_cpu_can_do(
    monkeypatch: pytest.MonkeyPatch, capabilities: dict[str, bool], expected: bool
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    assert computes_in_bf16(CPU) is expected


def test_an_older_torch_does_not_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert computes_in_bf16(CPU) is False


def test_a_gpu_that_emulates_bfloat16_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    def supported(including_emulation: bool = True) -> bool:
        return including_emulation

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", supported)
    assert computes_in_bf16(torch.device("cuda")) is False


def test_a_device_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    words = describe(CPU)
    assert f", {torch.get_num_threads()} of " in words
    assert words.endswith(" threads")
    assert words.isprintable()
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "A Fast GPU")
    assert describe(torch.device("cuda")) == "A Fast GPU"
