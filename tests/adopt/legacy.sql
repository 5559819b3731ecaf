-- A database as found in practice: names that need quotes, every kind of column, and procedures that nobody wrote
-- for BEDS. One query with several statements loads it; it has no DELIMITER.

CREATE TABLE Kunden (
  KundenNr BIGINT UNSIGNED NOT NULL AUTO_INCREMENT,
  `Name` VARCHAR(80) NOT NULL COMMENT 'as on the invoice; "c/o" allowed',
  `Straße` VARCHAR(120) NULL,
  `e-mail` VARCHAR(190) NULL,
  `type` ENUM('person', 'company', 'o''ther, etc.') NOT NULL DEFAULT 'person',
  flags SET('vip', 'blocked', 'no mail') NOT NULL DEFAULT '',
  `credit$limit` DECIMAL(20, 4) UNSIGNED NOT NULL DEFAULT 0,
  `geworben von` BIGINT UNSIGNED NULL,
  `public` UUID NOT NULL DEFAULT UUID(),
  born DATE NULL,
  call_after TIME NULL,
  notes TEXT NULL,
  pin VARBINARY(16) NULL INVISIBLE,
  label VARCHAR(160) AS (CONCAT(`Name`, ' <', COALESCE(`e-mail`, '-'), '>')) VIRTUAL,
  is_active BOOLEAN NOT NULL DEFAULT TRUE,
  `geändert` TIMESTAMP NOT NULL DEFAULT CURRENT_TIMESTAMP ON UPDATE CURRENT_TIMESTAMP,
  PRIMARY KEY (KundenNr),
  UNIQUE KEY `one e-mail each` (`e-mail`),
  KEY notes_prefix (notes(20)),
  KEY by_type (`type`, `Name`),
  CONSTRAINT recruited_by FOREIGN KEY (`geworben von`) REFERENCES Kunden (KundenNr) ON DELETE SET NULL,
  CONSTRAINT company_has_no_birthday CHECK (`type` <> 'company' OR born IS NULL)
) ENGINE = InnoDB COMMENT = 'customers; migrated 2009';

CREATE TABLE `order` (
  `key` INT UNSIGNED NOT NULL AUTO_INCREMENT,
  `group` SMALLINT NOT NULL DEFAULT 1,
  `external ref` VARCHAR(40) NULL,
  customer BIGINT UNSIGNED NOT NULL,
  `limit` INT NULL,
  document JSON NULL,
  options BIT(8) NOT NULL DEFAULT b'00000101',
  net DECIMAL(20, 4) NOT NULL DEFAULT 0,
  gross DECIMAL(20, 4) AS (net * 1.19) STORED,
  weight FLOAT NULL,
  distance DOUBLE NULL,
  placed DATETIME(6) NOT NULL DEFAULT CURRENT_TIMESTAMP(6),
  closed DATETIME NULL,
  PRIMARY KEY (`key`),
  UNIQUE KEY ref_in_group (`group`, `external ref`),
  CONSTRAINT ordered_by FOREIGN KEY (customer) REFERENCES Kunden (KundenNr)
) ENGINE = InnoDB;

CREATE TABLE `order lines` (
  `order key` INT UNSIGNED NOT NULL,
  `Pos.` TINYINT UNSIGNED NOT NULL,
  SKU CHAR(8) NOT NULL,
  qty MEDIUMINT NOT NULL,
  `unit price` DECIMAL(20, 4) NOT NULL,
  PRIMARY KEY (`order key`, `Pos.`),
  CONSTRAINT `lines of order` FOREIGN KEY (`order key`) REFERENCES `order` (`key`) ON DELETE CASCADE ON UPDATE CASCADE,
  CONSTRAINT CHECK (qty > 0)
) ENGINE = InnoDB;

CREATE TABLE prices (
  sku CHAR(8) NOT NULL PRIMARY KEY,
  price DECIMAL(20, 4) NOT NULL
) ENGINE = InnoDB WITH SYSTEM VERSIONING;

-- No key at all, as most logs.
CREATE TABLE import$log (
  at DATETIME(3) NULL,
  line INT NULL,
  `message` VARCHAR(200) NULL,
  raw LONGBLOB NULL
) ENGINE = InnoDB;

-- A unique key, but no primary key; and a second engine, with a character set of its own.
CREATE TABLE Archiv_1998 (
  jahr YEAR NOT NULL,
  nr INT NOT NULL,
  received DATE NOT NULL DEFAULT '0000-00-00',
  took TIME(2) NULL,
  betreff VARCHAR(200) NOT NULL,
  body MEDIUMTEXT NULL,
  scan BLOB NULL,
  UNIQUE KEY jahr_nr (jahr, nr),
  FULLTEXT KEY words (betreff, body)
) ENGINE = MyISAM DEFAULT CHARSET = latin1 COLLATE = latin1_german1_ci;

CREATE SEQUENCE invoice_numbers START WITH 1000 INCREMENT BY 1;

CREATE VIEW `open orders` AS
  SELECT o.`key`, o.`group`, k.`Name` AS `customer name`, o.gross
  FROM `order` AS o JOIN Kunden AS k ON k.KundenNr = o.customer
  WHERE o.closed IS NULL;

CREATE VIEW turnover AS
  SELECT customer, COUNT(*) AS orders, SUM(net) AS net FROM `order` GROUP BY customer;

CREATE TRIGGER log_new_order AFTER INSERT ON `order` FOR EACH ROW
  INSERT INTO import$log (at, line, `message`) VALUES (NEW.placed, NEW.`key`, CONCAT('order of ', NEW.customer));

CREATE FUNCTION vat_of(amount DECIMAL(20, 4)) RETURNS DECIMAL(20, 4)
  DETERMINISTIC NO SQL
  RETURN ROUND(amount * 0.19, 4);

CREATE FUNCTION next_invoice() RETURNS BIGINT
  MODIFIES SQL DATA
  RETURN NEXTVAL(invoice_numbers);

-- Parameters without a prefix.
CREATE PROCEDURE get_customer(id BIGINT UNSIGNED)
  READS SQL DATA COMMENT 'One customer'
  SELECT * FROM Kunden WHERE KundenNr = id;

-- Two result sets, then one that is empty for most customers.
CREATE PROCEDURE customer_file(IN pCustomer BIGINT UNSIGNED)
  READS SQL DATA
BEGIN
  SELECT KundenNr, `Name`, label FROM Kunden WHERE KundenNr = pCustomer;
  SELECT `key`, placed, gross FROM `order` WHERE customer = pCustomer ORDER BY `key`;
  SELECT KundenNr AS recruited FROM Kunden WHERE `geworben von` = pCustomer;
END;

CREATE PROCEDURE add_order(
  IN in_customer BIGINT UNSIGNED, IN in_group SMALLINT, IN `limit` INT, IN document LONGTEXT, OUT new_key INT UNSIGNED
)
  MODIFIES SQL DATA
BEGIN
  IF NOT EXISTS (SELECT 1 FROM Kunden WHERE KundenNr = in_customer AND NOT FIND_IN_SET('blocked', flags)) THEN
    SIGNAL SQLSTATE '45000' SET MESSAGE_TEXT = 'no such customer, or blocked', MYSQL_ERRNO = 30001;
  END IF;
  INSERT INTO `order` (`group`, customer, `limit`, document) VALUES (in_group, in_customer, `limit`, document);
  SET new_key = LAST_INSERT_ID();
END;

CREATE PROCEDURE add_line(
  IN order_key INT UNSIGNED, IN sku_ CHAR(8), IN how_many MEDIUMINT, INOUT running_total DECIMAL(20, 4)
)
  MODIFIES SQL DATA
BEGIN
  DECLARE each_costs DECIMAL(20, 4);
  DECLARE EXIT HANDLER FOR NOT FOUND SIGNAL SQLSTATE '45000' SET MESSAGE_TEXT = 'no price for this article';
  SELECT price INTO each_costs FROM prices WHERE sku = sku_;
  INSERT INTO `order lines`
    SELECT order_key, COALESCE(MAX(`Pos.`), 0) + 1, sku_, how_many, each_costs
    FROM `order lines` WHERE `order key` = order_key;
  UPDATE `order` SET net = net + how_many * each_costs WHERE `key` = order_key;
  SET running_total = COALESCE(running_total, 0) + how_many * each_costs;
END;

-- Calls two others, and returns both a result set and OUT parameters.
CREATE PROCEDURE QuickOrder(IN pCustomer BIGINT UNSIGNED, IN sku_ CHAR(8), OUT orderKey INT UNSIGNED, OUT total DECIMAL(20, 4))
  MODIFIES SQL DATA
BEGIN
  CALL add_order(pCustomer, 1, NULL, NULL, orderKey);
  CALL add_line(orderKey, sku_, 1, total);
  SELECT * FROM `order lines` WHERE `order key` = orderKey;
END;

CREATE PROCEDURE close_old_orders(IN before_day DATE)
  MODIFIES SQL DATA
BEGIN
  START TRANSACTION;
  UPDATE `order` SET closed = NOW() WHERE closed IS NULL AND placed < before_day;
  SELECT ROW_COUNT() AS closed_now;
  COMMIT;
END;

-- Connector/C takes the errors from 5001 to 5026 for its own, and reports a malformed packet (2027) instead.
CREATE PROCEDURE check_credit(IN in_id BIGINT UNSIGNED)
  READS SQL DATA
BEGIN
  IF (SELECT SUM(net) FROM `order` WHERE customer = in_id) > (SELECT `credit$limit` FROM Kunden WHERE KundenNr = in_id) THEN
    SIGNAL SQLSTATE '45000' SET MESSAGE_TEXT = 'over the credit limit', MYSQL_ERRNO = 5001;
  END IF;
END;

-- Dynamic SQL with a name from the caller.
CREATE PROCEDURE find_any(IN tableName VARCHAR(64), IN columnName VARCHAR(64), IN `value` VARCHAR(200))
  READS SQL DATA
BEGIN
  SET @find_any_value = `value`;
  SET @find_any_sql = CONCAT(
    'SELECT * FROM `', REPLACE(tableName, '`', '``'), '` WHERE `', REPLACE(columnName, '`', '``'), '` = ?'
  );
  PREPARE find_any FROM @find_any_sql;
  EXECUTE find_any USING @find_any_value;
  DEALLOCATE PREPARE find_any;
END;

CREATE PROCEDURE `yearly report $`(IN `year` YEAR, IN `Größe` INT)
  READS SQL DATA SQL SECURITY INVOKER
  SELECT nr, betreff FROM Archiv_1998 WHERE jahr = `year` ORDER BY nr LIMIT `Größe`;

CREATE PROCEDURE do_nothing() BEGIN END;

-- From the time before strict mode: it truncates what does not fit, and keeps this mode for ever.
SET @strict_mode = @@sql_mode, sql_mode = '';
CREATE PROCEDURE rename_customer(in_id INT, in_name TEXT)
  MODIFIES SQL DATA
  UPDATE Kunden SET `Name` = in_name WHERE KundenNr = in_id;
SET sql_mode = @strict_mode;

INSERT INTO Kunden (KundenNr, `Name`, `Straße`, `e-mail`, `type`, flags, `credit$limit`, `geworben von`, `public`, born,
                    call_after, notes, pin, `geändert`) VALUES
  (1, 'Ada Lund', 'Öster Allé 4', 'ada@example.org', 'person', 'vip,no mail', 20.0001, NULL,
   '11111111-2222-4333-8444-555555555501', '1971-02-28', '09:30:00', 'pays early', x'00FF10', '2019-03-31 00:30:00'),
  (2, 'Müller & Söhne', NULL, NULL, 'company', '', 99999999999999.9999, 1,
   '11111111-2222-4333-8444-555555555502', NULL, NULL, NULL, NULL, '2020-01-01 00:00:00'),
  (3, '张伟', '人民路 1', 'zhang@example.org', 'o''ther, etc.', 'blocked', 0, 1,
   '11111111-2222-4333-8444-555555555503', '2000-02-29', '-01:00:00', '', x'', '2021-06-15 12:00:00'),
  (18446744073709551000, 'Last 🐬', '', 'last@example.org', 'person', '', 1, NULL,
   '11111111-2222-4333-8444-555555555504', NULL, '838:59:59', 'number near the end', NULL, '2022-12-31 23:59:59');

INSERT INTO prices (sku, price) VALUES ('A-1', 9.9900), ('B-2', 0.0001), ('C-3', 1234567890.1234);
UPDATE prices SET price = 12.5000 WHERE sku = 'A-1';
DELETE FROM prices WHERE sku = 'C-3';

INSERT INTO `order` (`key`, `group`, `external ref`, customer, `limit`, document, options, net, weight, distance, placed,
                     closed) VALUES
  (1, 1, 'X-1', 1, 10, '{"gift": true, "tags": ["a", "b"]}', b'11111111', 25.0000, 1.5, 0.1, '2023-05-06 07:08:09.123456',
   NULL),
  (2, 1, NULL, 2, NULL, NULL, b'0', 0.0003, NULL, NULL, '2023-05-06 07:08:09.000001', '2023-06-01 00:00:00'),
  (3, 1, NULL, 2, -1, '[]', b'10000000', 12.5000, 0, 1e300, '1999-12-31 23:59:59.999999', NULL);

INSERT INTO `order lines` VALUES (1, 1, 'A-1', 2, 12.5000), (2, 1, 'B-2', 3, 0.0001), (3, 1, 'A-1', 1, 12.5000);

INSERT INTO import$log VALUES
  (NULL, NULL, NULL, NULL),
  ('2020-02-02 02:02:02.002', 1, 'twice', x'0001FEFF'),
  ('2020-02-02 02:02:02.002', 1, 'twice', x'0001FEFF');

INSERT INTO Archiv_1998 VALUES
  (1998, 1, '1998-04-01', '00:00:01.50', 'Anfrage Förderband', 'Wir bitten um ein Angebot.', x'FFD8FF'),
  (1998, 2, '0000-00-00', NULL, 'ohne Datum', NULL, NULL),
  (2155, 1, '1999-01-01', NULL, 'year of a typing error', '', x'');
