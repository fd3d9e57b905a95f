"""Texts → vectors of meaning: by a model in this process, by a service, or by the fleet itself."""
