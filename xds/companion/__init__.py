"""The companion: a small process beside an Envoy, for tasks that Envoy can't do itself.

``gossamer sidecar`` starts it when there are such tasks, and then executes Envoy. It ends with Envoy. Envoy's
connections do not pass through it, so they survive its failure.
"""
