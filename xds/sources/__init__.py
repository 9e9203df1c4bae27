"""Sources of the mesh: a Consul or a file."""
