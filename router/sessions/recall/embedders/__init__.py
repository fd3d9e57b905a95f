"""Make vectors of meaning from texts: by a model in this process, by a service, or by the fleet."""
