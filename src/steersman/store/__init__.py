"""What outlives a restart: keys, recipes, sets of steering vectors and jobs, in SQLite or PostgreSQL, tensors as files."""
