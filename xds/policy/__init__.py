"""Rules over facts, without I/O: who may call whom, which upstreams a service has, who owns a virtual IP."""
