"""HTTP APIs that are served from a provider."""
