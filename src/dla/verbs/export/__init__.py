"""`export`: a network as one file for other programs, with the report that it answers the same."""
