"""Serving sidecars from one process or from several: one reads the mesh, each of the others serves its share."""
