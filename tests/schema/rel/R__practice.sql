-- Procedures as they are found in practice.
CREATE OR REPLACE PROCEDURE settings_create(
  IN p_name VARCHAR(40), IN p_value TEXT, IN p_at DATETIME(6), IN p_n DOUBLE, IN p_b BIT(16))
BEGIN
  INSERT INTO settings (name, value, at, n, b) SELECT p_name AS name, p_value, IF(p_at IS NULL, NULL, p_at), p_n, p_b;
  INSERT INTO metrics (value, at) VALUES (1, YEAR(NOW()));
END;

CREATE OR REPLACE PROCEDURE settings_add_once(
  IN p_name VARCHAR(40), IN p_value TEXT, IN p_at DATETIME, IN p_n INT, IN p_b BIT(16))
INSERT IGNORE INTO settings (name, value, at, n, b) VALUES (p_name, p_value, p_at, p_n, p_b);

CREATE OR REPLACE PROCEDURE settings_add_many(IN p_records JSON)
INSERT IGNORE INTO settings (name, n)
SELECT name, n FROM JSON_TABLE(p_records, '$[*]' COLUMNS (
  name VARCHAR(40) PATH '$.name' ERROR ON ERROR, n INT PATH '$.n' ERROR ON ERROR)) AS r;

CREATE OR REPLACE PROCEDURE settings_touch(IN p_name VARCHAR(40), IN p_n DOUBLE)
BEGIN
  UPDATE settings SET n = p_n WHERE name = p_name;
  SELECT ROW_COUNT() AS changed;
END;

CREATE OR REPLACE PROCEDURE settings_drop(IN p_name VARCHAR(40), OUT p_said VARCHAR(20))
BEGIN
  DELETE FROM settings WHERE name = p_name;
  SET p_said = 'done';
END;

CREATE OR REPLACE PROCEDURE settings_by_name(IN p_name VARCHAR(40))
SELECT name, value, at, n, MAX(b) AS b FROM settings WHERE name = p_name GROUP BY name;

CREATE OR REPLACE PROCEDURE settings_counted(OUT p_total BIGINT, IN p_after_name VARCHAR(40), IN p_limit INT)
BEGIN
  SELECT name FROM settings WHERE name > COALESCE(p_after_name, '') ORDER BY name LIMIT p_limit;
  SELECT COUNT(*) INTO p_total FROM settings;
END;

CREATE OR REPLACE PROCEDURE scores_page(IN p_after_score DOUBLE, IN p_after_id INT, IN p_limit INT)
SELECT id, score FROM scores WHERE (score, id) > (COALESCE(p_after_score, -1), COALESCE(p_after_id, 0))
 ORDER BY score, id LIMIT p_limit;

CREATE OR REPLACE PROCEDURE ci_names_page(IN p_after_name VARCHAR(20), IN p_limit INT)
SELECT name FROM ci_names WHERE name > COALESCE(p_after_name, '') ORDER BY name LIMIT p_limit;
