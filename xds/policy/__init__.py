"""Pure rules over facts: who may call whom, which upstreams a service has, who owns a virtual IP."""
