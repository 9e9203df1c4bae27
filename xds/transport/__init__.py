"""What streams travel on: gRPC over HTTP/2, the server's side, and of both only what long-lived streams need.

Written here because a stream is what Gossamer has most of: `grpc.aio` takes 43 KB of memory for each and 65 µs of CPU
for each message on it, this a fraction of either. In the tests gRPC's own client, h2 and Envoy speak with it.
"""
