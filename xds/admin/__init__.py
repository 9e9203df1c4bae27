"""HTTP server for operators: readiness, metrics, and what each sidecar was sent."""
