"""Templates (by the developer), named objects (by the DBA), and the binding of the first to the second."""
