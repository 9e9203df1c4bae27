"""What Gossamer costs, measured. ``make bench`` runs it and rewrites ``docs/performance.md``."""
