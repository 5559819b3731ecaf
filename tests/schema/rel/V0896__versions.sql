-- Records with a version: a number that counts, and a token that each write replaces.
CREATE TABLE versioned (
  id VARCHAR(40) NOT NULL PRIMARY KEY,
  text VARCHAR(200) NULL,
  revision INT NOT NULL DEFAULT 1,
  token UUID NOT NULL DEFAULT UUID()
);
