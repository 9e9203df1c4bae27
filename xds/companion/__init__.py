"""The companion: a small process beside an Envoy, for what an Envoy can't do by itself.

``gossamer sidecar`` starts it when there is something to do, and then becomes Envoy. It ends with Envoy. Envoy's
connections do not pass through it: when it fails, they stay.
"""
