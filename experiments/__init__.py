"""Programs beside train.py, run as python -m experiments.NAME."""
