"""A whole one-node Kubernetes with Gossamer: ``make kubernetes`` runs these tests in namespaces of their own."""
