"""The DBA's side: bring both databases to what stands in `schema/`, and say how they differ."""
