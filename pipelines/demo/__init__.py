"""The demo: from two cities' temperatures to a live forecast that survives a crash, in a few minutes."""
