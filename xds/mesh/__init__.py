"""The current state of the mesh: immutable facts, and the one object that holds the current ones."""
