"""Programs in C that are linked with an installed library, and bundles for them."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from fracskip.operating.cascade import CascadePoint, CascadePoints
from fracskip.runtime.bundle import parse_bundle, resolve
from fracskip.runtime.cascade_bundle import cascade_of
from support.cascades import with_budgets
from support.native_build import ROOT, build_consumer, install, run
from support.random_bundle import random_bundle
from support.small_cascades import member, points, small_cascade

FLAGS = (
    "-O1 -g1 -fsanitize=address,undefined -fno-sanitize-recover=all "
    "-Wall -Wextra -Wpedantic -Werror"
)
DRIVER = """
find_package(Threads REQUIRED)
find_package(OpenMP COMPONENTS C)
foreach(name capi pool)
  add_executable(${name} ${name}.c)
  target_link_libraries(${name} PRIVATE fracskip::fracskip Threads::Threads)
endforeach()
if(OpenMP_C_FOUND)
  target_link_libraries(pool PRIVATE OpenMP::OpenMP_C)
else()
  target_compile_options(pool PRIVATE -Wno-unknown-pragmas)
endif()
"""
SMALL: dict[str, Any] = {"image": (8, 8), "widths": (4, 8), "depth": 2}
NARROW: dict[str, Any] = {"widths": (4, 8), "depth": 1}
LOW = (0.35, 0.275)  # thresholds between the scores of networks that were never trained
BUDGETS = {**SMALL, "output": "sensitivity", "options": ("skip", 2, 4, 8)}
BUNDLES: dict[str, Callable[[], bytes]] = {
    "bundled": lambda: resolve("bundled").read_bytes(),
    "bundled cascade": lambda: resolve("cascade-cifar10").read_bytes(),
    "curve and cascade": lambda: with_budgets(random_bundle(1, **BUDGETS)),
    "budget input": lambda: with_budgets(random_bundle(2, budget_input=True, **BUDGETS)),
    "gated, one budget": lambda: random_bundle(3, **SMALL),
    "static": lambda: random_bundle(4, options=(8,), **SMALL),
    "cascade of sizes": lambda: (
        small_cascade(((8, 8), (11, 10), (12, 12)), LOW, averaged=True, **NARROW).data
    ),
    "gated cascade": lambda: gated_cascade(),
}


def gated_cascade() -> bytes:
    """A gated network at two budgets, and a static one; also all three in one chain."""
    gated = parse_bundle(BUNDLES["curve and cascade"]())
    own = ((0.25,) * len(gated.plan.options),) * len(gated.plan.gated)
    members = [
        member(0, 1e6, budget=0.02, shares=own),
        member(0, 2e6, budget=0.3, shares=own, temperature=0.5),
        member(1, 4e6),
    ]
    static = parse_bundle(BUNDLES["static"]())
    known = points(members, LOW)
    chain = CascadePoint(
        chain=(0, 1, 2), thresholds=(0.275, 0.43), rates=(1.0, 0.5, 0.2), quantiles=((0.2, 0.9),),
        correct=999, against=((40, 5),) * 3,
    )  # fmt: skip
    more = CascadePoints(**{**dict(known), "points": (*known.points, chain)})
    return cascade_of([gated, static], more).data


def documented(language: Literal["c", "cmake"]) -> str:
    """What docs/c.md tells to write."""
    page = (ROOT / "docs" / "c.md").read_text()
    found = re.search(rf"```{language}\n(.*?)```", page, re.DOTALL)
    assert found is not None
    return found.group(1)


def built(folder: Path, shared: bool) -> Path:
    """The example and the drivers, linked with an installed library."""
    install("address", folder / "installed", shared)
    shutil.copy(ROOT / "examples" / "classify.c", folder)
    for name in ("capi.c", "pool.c"):
        shutil.copy(ROOT / "native" / "tests" / name, folder)
    (folder / "documented.h").write_text(documented("c"))
    cmake = documented("cmake")
    if not shared:
        cmake = cmake.replace("LANGUAGES C", "LANGUAGES C CXX")
    (folder / "CMakeLists.txt").write_text(cmake + DRIVER)
    build_consumer(folder, folder / "installed", FLAGS)
    return folder


def driven(programs: Path, *arguments: object, driver: str = "capi") -> list[str]:
    return run([str(programs / "build" / driver), *map(str, arguments)]).splitlines()
