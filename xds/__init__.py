"""Gossamer: the control plane that makes a Consul service mesh transparent.

The way of a fact through the package, each arrow an import that may not run back::

    sources ─► mesh ─► policy ─► envoy ─► ads ─► Envoy
                                 ╰── control ──╯

``docs/architecture.md`` shows the whole house.
"""

__version__ = "0.1.0"
