"""The xDS protocol: a session state machine without I/O, and a server that has a session on each stream."""
