"""What exists only inside the container: the settings, one job's story, its outputs."""
