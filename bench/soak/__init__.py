"""The soak test (`scripts/soak`): many jobs on workers in production mode, with random faults injected around them."""
