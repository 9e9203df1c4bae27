"""Serves sidecars from one process or from several, of which one reads the mesh and each of the others serves its
share."""
