-- Records of jobs; tests only.
CREATE TABLE job_rows (
  id INT NOT NULL PRIMARY KEY,
  amount INT NOT NULL,
  price DECIMAL(12,2) NULL,
  at DATETIME(3) NULL,
  mark UUID NULL,
  note VARCHAR(200) NULL,
  `unique` VARCHAR(40) NULL,
  UNIQUE KEY one (`unique`)
);
