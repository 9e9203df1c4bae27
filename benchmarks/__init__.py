"""Benchmarks of Gossamer. ``make bench`` runs them and rewrites ``docs/performance.md``."""
