"""Reads finished measurements: front, figures, report, tables."""
