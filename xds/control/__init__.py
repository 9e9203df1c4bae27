"""The one place that knows what depends on what: from changed facts to the resources of each connected proxy."""
