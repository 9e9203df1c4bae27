"""Encodes what the rules decide as Envoy resources, without I/O. One module for each kind of resource.

Names, ports and values that an operator can see are Consul's (its xDS server, ``agent/xds``), so that dashboards made
for Consul keep working.
"""
