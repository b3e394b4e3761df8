"""What is measured of answers: accuracy, calibration, intervals. NumPy alone."""
