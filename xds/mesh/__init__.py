"""What is true of the mesh right now: immutable facts, and the one place that holds the current ones."""
