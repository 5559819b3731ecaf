"""The sample domain: New York's flights of 2013, loaded and queried through BEDS alone."""
