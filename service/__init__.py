"""The online edge: an HTTP service that keeps one recurrent state per stream and forecasts from it.

It knows `forecaster` (the library) and nothing of `pipelines`. The observation log in the store is the truth; the
states in memory and the snapshots are caches of a pure function of (model, log), so a crash, an eviction or a new
model changes no forecast.
"""
