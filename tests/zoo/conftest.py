"""These tests need torchvision, timm and a torch that they import with: `make zoo`."""

from importlib.util import find_spec

import pytest

collect_ignore_glob = [] if find_spec("torchvision") and find_spec("timm") else ["test_*.py"]


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests of one network one after the other, whatever their file: it is converted once."""

    def network(item: pytest.Item) -> str:
        call = getattr(item, "callspec", None)
        return "" if call is None else str(call.params.get("name", ""))

    items.sort(key=network)
