"""These tests need torchvision, timm and a torch that they import with: `make zoo`."""

from importlib.util import find_spec

collect_ignore_glob = [] if find_spec("torchvision") and find_spec("timm") else ["test_*.py"]
