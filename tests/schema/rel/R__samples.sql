CREATE OR REPLACE PROCEDURE samples_create(
  IN p_id VARCHAR(40), IN p_text VARCHAR(200), IN p_whole BIGINT, IN p_ratio DOUBLE, IN p_price DECIMAL(20, 4),
  IN p_flag BOOLEAN, IN p_moment DATETIME(3), IN p_token UUID, IN p_raw VARBINARY(1000), IN p_extra JSON,
  IN p_list JSON, IN p_parent VARCHAR(40))
BEGIN
  IF p_text = 'forbidden' THEN
    SIGNAL SQLSTATE '45007' SET MESSAGE_TEXT = 'this text is forbidden';
  END IF;
  INSERT INTO samples (id, text, whole, ratio, price, flag, moment, token, raw, extra, list, parent)
  VALUES (p_id, p_text, p_whole, p_ratio, p_price, p_flag, p_moment, p_token, p_raw, p_extra, p_list, p_parent);
END;

CREATE OR REPLACE PROCEDURE samples_create_many(IN p_records JSON)
INSERT INTO samples (id, text, whole, ratio, price, flag, moment, token, raw, extra, list, parent)
SELECT id, text, whole, ratio, price, flag, moment, token, FROM_BASE64(raw), extra, list, parent
  FROM JSON_TABLE(p_records, '$[*]' COLUMNS (
         id VARCHAR(40) PATH '$.id' ERROR ON ERROR,
         text VARCHAR(200) PATH '$.text' ERROR ON ERROR,
         whole BIGINT PATH '$.whole' ERROR ON ERROR,
         ratio DOUBLE PATH '$.ratio' ERROR ON ERROR,
         price DECIMAL(20, 4) PATH '$.price' ERROR ON ERROR,
         flag BOOLEAN PATH '$.flag' ERROR ON ERROR,
         moment DATETIME(3) PATH '$.moment' ERROR ON ERROR,
         token CHAR(36) PATH '$.token' ERROR ON ERROR,
         raw TEXT PATH '$.raw' ERROR ON ERROR,
         extra JSON PATH '$.extra',
         list JSON PATH '$.list',
         parent VARCHAR(40) PATH '$.parent' ERROR ON ERROR)) AS record;

CREATE OR REPLACE PROCEDURE samples_update(IN p_id VARCHAR(40), IN p_text VARCHAR(200), IN p_whole BIGINT)
UPDATE samples SET text = COALESCE(p_text, text), whole = COALESCE(p_whole, whole) WHERE id = p_id;

CREATE OR REPLACE PROCEDURE samples_delete(IN p_id VARCHAR(40))
DELETE FROM samples WHERE id = p_id;

CREATE OR REPLACE PROCEDURE samples_by_id(IN p_id VARCHAR(40))
SELECT * FROM samples WHERE id = p_id;

CREATE OR REPLACE PROCEDURE samples_by_text(IN p_text VARCHAR(200), IN p_after_id VARCHAR(40), IN p_limit INT)
SELECT * FROM samples WHERE text = p_text AND id > COALESCE(p_after_id, '') ORDER BY id LIMIT p_limit;

CREATE OR REPLACE PROCEDURE samples_sleep(IN p_seconds DOUBLE)
SELECT SLEEP(p_seconds) AS slept;

-- Many result sets and an OUT parameter: what a driver must drain.
CREATE OR REPLACE PROCEDURE samples_chatty(OUT p_total BIGINT, IN p_text VARCHAR(200))
BEGIN
  SELECT 'first' AS word;
  SELECT 'second' AS word;
  UPDATE samples SET text = text WHERE FALSE;
  SELECT 'third' AS word;
  SELECT COUNT(*) INTO p_total FROM samples WHERE text = p_text;
END;

-- A fetch that writes, which its own text does not say.
CREATE OR REPLACE FUNCTION samples_touch(p_id VARCHAR(40)) RETURNS BIGINT MODIFIES SQL DATA
BEGIN
  UPDATE samples SET whole = COALESCE(whole, 0) + 1 WHERE id = p_id;
  RETURN (SELECT whole FROM samples WHERE id = p_id);
END;

CREATE OR REPLACE PROCEDURE samples_touched(IN p_id VARCHAR(40))
SELECT samples_touch(p_id) AS whole;
