"""The models that serve: loaded, tried, followed in the registry, with the timestamps their replies carry."""
