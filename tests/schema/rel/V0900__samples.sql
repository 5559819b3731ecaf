-- One column for each type that crosses the wire.
CREATE TABLE samples (
  id VARCHAR(40) NOT NULL PRIMARY KEY,
  text VARCHAR(200) NULL,
  whole BIGINT NULL,
  ratio DOUBLE NULL,
  price DECIMAL(20, 4) NULL,
  flag BOOLEAN NULL,
  moment DATETIME(3) NULL,
  token UUID NULL,
  raw VARBINARY(1000) NULL,
  extra JSON NULL,
  list JSON NULL,
  parent VARCHAR(40) NULL,
  CONSTRAINT child_of FOREIGN KEY (parent) REFERENCES samples (id)
);
