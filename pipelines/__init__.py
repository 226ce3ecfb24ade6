"""The offline edge: read data, train, backtest, register, promote, schedule, benchmark, and the command line.

Plain typed functions over the library `forecaster`; the command line and the orchestrator call the same ones.
It knows MLflow and files, never the web service: training and serving meet in a stored model, not in an import.
Modules are imported by name (``from pipelines.train import train_model``), so that importing one loads no other.
"""
