"""Measurements of the service, each against a bare reference of the same sizes in the same run.

Not imported by the service. Invariant: reference and subject alternate, and what is compared is said in the output.
"""
