-- What must happen once: deposits add up, and a transfer moves what it moves. No key keeps a second copy out.
CREATE TABLE accounts (
  id VARCHAR(40) NOT NULL PRIMARY KEY,
  balance BIGINT NOT NULL,
  pin VARCHAR(40) NULL,
  CONSTRAINT one_pin UNIQUE (pin)
);
CREATE TABLE transfers (
  id VARCHAR(40) NOT NULL,
  source VARCHAR(40) NOT NULL,
  target VARCHAR(40) NOT NULL,
  amount BIGINT NOT NULL,
  KEY by_id (id)
);
