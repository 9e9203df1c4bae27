"""Reads a mesh from one YAML file, with a certificate authority of its own: a mesh without a Consul."""
