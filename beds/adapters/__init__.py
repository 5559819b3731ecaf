"""One adapter per store. An adapter calls named objects; it never builds a query."""
