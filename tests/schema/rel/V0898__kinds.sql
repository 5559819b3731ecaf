-- A column of each of MariaDB's types: docs/reference/types.md.
CREATE TABLE kinds (
  id VARCHAR(40) NOT NULL PRIMARY KEY,
  bit1 BIT(1) NULL,
  bits BIT(20) NULL,
  tiny TINYINT NULL,
  utiny TINYINT UNSIGNED NULL,
  flag BOOLEAN NULL,
  small SMALLINT NULL,
  medium MEDIUMINT NULL,
  whole INT NULL,
  uwhole INT UNSIGNED NULL,
  big BIGINT NULL,
  ubig BIGINT UNSIGNED NULL,
  yr YEAR NULL,
  price DECIMAL(10,2) NULL,
  ratio DECIMAL(5,1) UNSIGNED NULL,
  counted DECIMAL(20,0) NULL,
  fl FLOAT NULL,
  db DOUBLE NULL,
  ch CHAR(5) NULL,
  vc VARCHAR(20) NULL,
  ci VARCHAR(20) COLLATE utf8mb4_general_ci NULL,
  tinytxt TINYTEXT NULL,
  txt TEXT NULL,
  longtxt LONGTEXT NULL,
  en ENUM('a','B','c d','1') NULL,
  st SET('x','y','z') NULL,
  sta SET('x','y','z') NULL,
  uu UUID NULL,
  uuc CHAR(36) NULL,
  uub BINARY(16) NULL,
  oid CHAR(24) NULL,
  i4 INET4 NULL,
  i6 INET6 NULL,
  bin BINARY(4) NULL,
  vb VARBINARY(20) NULL,
  blb BLOB NULL,
  geo POINT NULL,
  js JSON NULL,
  ja JSON NULL,
  dt DATETIME NULL,
  dt6 DATETIME(6) NULL,
  ts TIMESTAMP(3) NULL,
  da DATE NULL,
  tm TIME NULL,
  tm6 TIME(6) NULL,
  du TIME(3) NULL,
  doubled INT AS (whole * 2)
);
-- What a column can hold that no value of BEDS is.
CREATE TABLE odd (
  id VARCHAR(40) NOT NULL PRIMARY KEY,
  da DATE NULL, dt DATETIME NULL, js LONGTEXT NULL, txt VARCHAR(40) NULL, uu VARCHAR(40) NULL, tm TIME NULL, whole DECIMAL(30,3) NULL
);
CREATE TABLE order_lines (
  order_id INT NOT NULL, line_no BIGINT UNSIGNED NOT NULL, what VARCHAR(20) NULL, nick VARCHAR(20) NULL,
  PRIMARY KEY (order_id, line_no), UNIQUE KEY `nick-once` (nick)
);
CREATE TABLE line_notes (
  id INT NOT NULL PRIMARY KEY, order_id INT NOT NULL, line_no BIGINT UNSIGNED NOT NULL,
  CONSTRAINT note_of FOREIGN KEY (order_id, line_no) REFERENCES order_lines (order_id, line_no)
);
CREATE TABLE spellings (
  code VARCHAR(20) COLLATE utf8mb4_general_ci NOT NULL PRIMARY KEY, name VARCHAR(20) NULL
);
CREATE TABLE raw_keys (
  id VARBINARY(8) NOT NULL PRIMARY KEY, name VARCHAR(20) NULL
);
-- b is always a + 1: a swap shows.
CREATE TABLE pairs (id INT NOT NULL PRIMARY KEY, a INT NOT NULL, b INT NOT NULL);
-- Tables as they are found in practice.
CREATE TABLE settings (
  name VARCHAR(40) NOT NULL PRIMARY KEY, value TEXT NULL, at DATETIME NULL, n INT NULL, b BIT(16) NULL
);
CREATE TABLE metrics (id INT AUTO_INCREMENT PRIMARY KEY, value DOUBLE NULL, at YEAR NULL);
CREATE TABLE scores (id INT NOT NULL PRIMARY KEY, score FLOAT NOT NULL);
CREATE TABLE ci_names (name VARCHAR(20) COLLATE utf8mb4_general_ci NOT NULL PRIMARY KEY);
