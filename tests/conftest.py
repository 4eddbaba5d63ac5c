"""Loads torch as the program does: with its threads set to wait briefly."""

import objectives

assert objectives.__doc__
