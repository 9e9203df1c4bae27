"""The control plane: from changed facts to the resources of each connected proxy."""
