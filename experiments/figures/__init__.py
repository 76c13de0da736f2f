"""Figures of the papers, drawn from this code."""
