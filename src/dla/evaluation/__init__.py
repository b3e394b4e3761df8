"""Measure the accuracy and calibration of classifiers, and compare them."""
