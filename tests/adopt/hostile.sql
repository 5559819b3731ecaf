-- What broke earlier drafts.
CREATE TABLE defaults (
  id INT NOT NULL AUTO_INCREMENT PRIMARY KEY, a INT NULL, b INT NULL DEFAULT (a + 1), c VARCHAR(20) NULL DEFAULT 'x`y',
  d VARCHAR(9) NOT NULL DEFAULT 'ok 😀'
);
INSERT INTO defaults (id, a) VALUES (1, 4);
CREATE TABLE sets (
  s SET('m00','m01','m02','m03','m04','m05','m06','m07','m08','m09','m10','m11','m12','m13','m14','m15','m16','m17','m18',
        'm19','m20','m21','m22','m23','m24','m25','m26','m27','m28','m29','m30','m31','m32','m33','m34','m35','m36','m37',
        'm38','m39','m40','m41','m42','m43','m44','m45','m46','m47','m48','m49','m50','m51','m52','m53','m54','m55','m56',
        'm57','m58','m59','m60','m61','m62','m63') NOT NULL PRIMARY KEY,
  b BIT(64) NULL
);
INSERT INTO sets VALUES ('m00,m63', b'1'), ('m01,m63', NULL), ('m02,m63', NULL), ('m00,m01,m63', NULL), ('m00,m60', NULL);
CREATE TABLE film (id INT NOT NULL PRIMARY KEY);
CREATE VIEW film_count AS SELECT 7 AS records;
CREATE TABLE wanted (k VARCHAR(50) CHARACTER SET latin1 NOT NULL PRIMARY KEY, n INT NULL);
INSERT INTO wanted VALUES ('é', 1), ('f', 2);
CREATE TABLE `it's -- "x"` (id INT NOT NULL PRIMARY KEY, `a column whose name has all of the sixty-four characters it may` INT NOT NULL DEFAULT 5);
INSERT INTO `it's -- "x"` VALUES (1, 2), (2, 3);
CREATE TABLE written (x INT NULL);
CREATE FUNCTION fw(x INT) RETURNS INT BEGIN INSERT INTO written VALUES (x); RETURN x; END;
CREATE FUNCTION fr(x INT) RETURNS INT RETURN fw(x) + 1;
CREATE PROCEDURE callsf(IN x INT) SELECT fr(x) AS y;
CREATE VIEW vw AS SELECT fw(77) AS y;
