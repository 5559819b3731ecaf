"""MongoDB: stored commands and views of the DBA, called by name."""
