"""Pure: what the rules decide, encoded as Envoy resources. One module for each kind of resource.

Names, ports and values that an operator can see are Consul's (its xDS server, ``agent/xds``), so that dashboards and
habits made for Consul keep working.
"""
