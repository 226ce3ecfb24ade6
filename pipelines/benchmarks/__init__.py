"""Measurements of training and of accuracy, each by one repeatable command.

Speed stands beside bare loops of the same shapes; accuracy stands beside published results, baselines and other
libraries, on the same data, with the same protocols and metrics. Data sets are the user's: none is shipped.
"""
