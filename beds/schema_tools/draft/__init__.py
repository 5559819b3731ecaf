"""`beds schema draft`: objects and templates for a database that exists already."""
