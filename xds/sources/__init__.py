"""What the mesh is read from; the only rooms that do input."""
