"""Metrics of classifiers: accuracy, calibration, confidence intervals. They need only NumPy."""
