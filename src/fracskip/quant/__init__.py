"""Quantisation: the integer reference, fake quantisation, observers and the layers that use them.

Importing this package loads no torch; `quant.affine` is NumPy alone.
"""
