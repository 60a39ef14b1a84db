"""A small network's cost profile, worked out by hand."""

from fracskip.cost.profile import BlockProfile, NetworkProfile

NETWORK = NetworkProfile(
    1000,
    (
        BlockProfile("first", 100, gated=False),
        BlockProfile("plain", 1600, gate_macs=7),
        BlockProfile("strided", 3200, shortcut_macs=20, gate_macs=9),
    ),
    50,
)
BACKBONE = 1000 + 100 + 1600 + 3200 + 20 + 50
