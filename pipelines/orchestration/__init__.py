"""The scheduled training pipeline on Dagster: the command line's own functions as assets, one schedule, one launcher.

Nothing in here computes a forecast: each asset calls a plain function of `pipelines` and hands on ids and paths.
Only this package knows Dagster; `pipelines` works without it.
"""
