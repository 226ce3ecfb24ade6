"""The routes, one module per resource. They translate HTTP to engine items and back, and decide nothing else."""
