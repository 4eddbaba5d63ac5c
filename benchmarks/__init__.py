"""Measures how fast the engine is beside other ways of doing the same work; asserts nothing."""

# First of all, because it says how long idle threads spin, which is read when torch is loaded. So
# it holds for every way that is measured here, and for every process that is started.
import objectives  # noqa: F401
