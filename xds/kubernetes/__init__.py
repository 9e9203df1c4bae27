"""Gossamer on Kubernetes: pods get a sidecar when they are created, and are registered in Consul.

`injection` decides what a pod gets, `admission` answers the API server, `webhook` serves it.
"""
