"""Benchmarks on this machine: a dynamic network, its parts, and what else could be run instead.

`bench.run` times a network beside other engines; `bench.blocks` times its blocks and its gates.
Importing this loads no torch.
"""
