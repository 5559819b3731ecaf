"""The DBA's tools: apply `schema/` to both databases, and list the differences."""
