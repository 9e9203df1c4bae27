"""The xDS protocol: a session state machine without I/O, and a thin grpc.aio server around it."""
