-- Older flights; no foreign keys, as in an archive.
CREATE TABLE flights_cool LIKE flights;
