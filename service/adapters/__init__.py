"""Thin translations of other systems' forecast requests onto the stateless forecast, each with its callers' errors."""
