-- Composite keys, keys in other spellings, several result sets, and stored values that cannot travel.
CREATE OR REPLACE PROCEDURE order_lines_create(
  IN p_order_id INT, IN p_line_no BIGINT UNSIGNED, IN p_what VARCHAR(20), IN p_nick VARCHAR(20))
INSERT INTO order_lines (order_id, line_no, what, nick) VALUES (p_order_id, p_line_no, p_what, p_nick);

CREATE OR REPLACE PROCEDURE order_lines_update(
  IN p_order_id INT, IN p_line_no BIGINT UNSIGNED, IN p_what VARCHAR(20), OUT p_affected INT)
BEGIN
  UPDATE order_lines SET what = p_what WHERE order_id = p_order_id AND line_no = p_line_no;
  SET p_affected = ROW_COUNT();
  SET @order_lines_updates = COALESCE(@order_lines_updates, 0) + 1;
END;

CREATE OR REPLACE PROCEDURE order_lines_delete(IN p_line_no BIGINT UNSIGNED, IN p_order_id INT)
DELETE FROM order_lines WHERE order_id = p_order_id AND line_no = p_line_no;

CREATE OR REPLACE PROCEDURE order_lines_of(
  IN p_order_id INT, IN p_after_order_id INT, IN p_after_line_no BIGINT UNSIGNED, IN p_limit INT)
SELECT order_id, line_no, what, nick FROM order_lines
 WHERE order_id = p_order_id AND (p_after_line_no IS NULL OR (order_id, line_no) > (p_after_order_id, p_after_line_no))
 ORDER BY order_id, line_no LIMIT p_limit;

CREATE OR REPLACE PROCEDURE order_lines_head(IN p_order_id INT, OUT p_total BIGINT)
BEGIN
  SELECT DISTINCT order_id FROM order_lines WHERE order_id = p_order_id;
  SELECT order_id, line_no, what FROM order_lines WHERE order_id = p_order_id ORDER BY line_no;
  SELECT COUNT(*) INTO p_total FROM order_lines WHERE order_id = p_order_id;
END;

CREATE OR REPLACE PROCEDURE line_notes_create(IN p_id INT, IN p_order_id INT, IN p_line_no BIGINT UNSIGNED)
BEGIN
  IF p_id < 0 THEN
    SIGNAL SQLSTATE '02000' SET MESSAGE_TEXT = 'a note has a number';
  END IF;
  INSERT INTO line_notes (id, order_id, line_no) VALUES (p_id, p_order_id, p_line_no);
END;

CREATE OR REPLACE PROCEDURE line_notes_sums(
  OUT p_lines DECIMAL(20, 0), INOUT p_counter INT, IN p_id INT)
SET p_lines = p_id * 2, p_counter = COALESCE(p_counter, 0) + 1;

CREATE OR REPLACE PROCEDURE spellings_create(IN p_code VARCHAR(20), IN p_name VARCHAR(20))
INSERT INTO spellings (code, name) VALUES (p_code, p_name);

CREATE OR REPLACE PROCEDURE spellings_update(IN p_code VARCHAR(20) COLLATE utf8mb4_general_ci, IN p_name VARCHAR(20))
UPDATE spellings SET name = p_name WHERE code = p_code;

CREATE OR REPLACE PROCEDURE spellings_delete(IN p_code VARCHAR(20) COLLATE utf8mb4_general_ci)
DELETE FROM spellings WHERE code = p_code;

CREATE OR REPLACE PROCEDURE spellings_by_code(IN p_code VARCHAR(20) COLLATE utf8mb4_general_ci)
SELECT code, name FROM spellings WHERE code = p_code;

CREATE OR REPLACE PROCEDURE raw_keys_create(IN p_id VARBINARY(8), IN p_name VARCHAR(20))
INSERT INTO raw_keys (id, name) VALUES (p_id, p_name);

CREATE OR REPLACE PROCEDURE raw_keys_delete(IN p_id VARBINARY(8))
DELETE FROM raw_keys WHERE id = p_id;

CREATE OR REPLACE PROCEDURE odd_by_id(IN p_id VARCHAR(40))
SELECT id, da, dt, js, txt, uu, tm, whole FROM odd WHERE id = p_id;

CREATE OR REPLACE PROCEDURE odd_flood(IN p_rows INT)
SELECT CAST(seq AS CHAR) AS id, REPEAT('x', 40) AS txt FROM seq_1_to_3000000 WHERE seq <= p_rows;

CREATE OR REPLACE PROCEDURE odd_heavy(IN p_rows INT)
SELECT CAST(seq AS CHAR) AS id, REPEAT('x', 4194304) AS txt FROM seq_1_to_100 WHERE seq <= p_rows;

CREATE OR REPLACE PROCEDURE odd_not_utf8()
SELECT 'fine' AS id, CONCAT(UNHEX('C3'), 'a' COLLATE utf8mb4_bin) AS txt;

CREATE OR REPLACE PROCEDURE odd_twins() SELECT 1 AS id, 2 AS id;
