"""Running exported networks: bundles, sessions and engines. Importing this loads no torch."""

from fracskip.runtime.cascade import Cascade
from fracskip.runtime.session import InferenceSession

__all__ = ["Cascade", "InferenceSession"]
