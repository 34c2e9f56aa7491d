"""A page about a run: one HTML file that needs nothing else, to be opened, sent and kept."""

from cifarkit.reporting.page import report

__all__ = ["report"]
