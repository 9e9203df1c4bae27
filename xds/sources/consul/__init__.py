"""Reads a mesh from Consul's HTTP API: client, blocking queries, decoding, certificates."""
