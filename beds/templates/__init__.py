"""Templates (by the developer), named objects (by the DBA), and how the one is bound to the other."""
