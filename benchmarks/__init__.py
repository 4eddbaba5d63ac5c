"""Measures how fast the engine is beside other ways of doing the same work; asserts nothing."""
