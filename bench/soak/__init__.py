"""What scripts/soak runs: jobs through workers in production mode, while what is around them fails at random."""
