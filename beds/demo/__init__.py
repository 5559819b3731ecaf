"""The sample domain at work: New York's flights of 2013, loaded and asked through BEDS alone."""
