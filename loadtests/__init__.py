"""Measurements of a running server: load runs and side-by-side comparisons."""
