"""HTTP for operators: whether Gossamer can serve, what it counts, what each sidecar was sent."""
