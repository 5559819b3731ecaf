-- Records of jobs; tests only.
CREATE OR REPLACE PROCEDURE job_rows_create(
  IN p_id INT, IN p_amount INT, IN p_price DECIMAL(12,2), IN p_at DATETIME(3), IN p_mark UUID, IN p_note VARCHAR(200),
  IN p_unique VARCHAR(40))
INSERT INTO job_rows (id, amount, price, at, mark, note, `unique`) VALUES (p_id, p_amount, p_price, p_at, p_mark, p_note, p_unique);

CREATE OR REPLACE PROCEDURE job_rows_update(IN p_id INT, IN p_amount INT, IN p_note VARCHAR(200))
UPDATE job_rows SET amount = COALESCE(p_amount, amount), note = COALESCE(p_note, note) WHERE id = p_id;

CREATE OR REPLACE PROCEDURE job_rows_delete(IN p_id INT)
DELETE FROM job_rows WHERE id = p_id;

CREATE OR REPLACE PROCEDURE job_rows_by_id(IN p_id INT)
SELECT * FROM job_rows WHERE id = p_id;

CREATE OR REPLACE PROCEDURE job_rows_range(IN p_below INT, IN p_after_id INT, IN p_until_id INT, IN p_limit INT)
SELECT * FROM job_rows
 WHERE id > COALESCE(p_after_id, -2147483648) AND id <= COALESCE(p_until_id, 2147483647)
   AND (p_below IS NULL OR amount < p_below) ORDER BY id LIMIT p_limit;

CREATE OR REPLACE FUNCTION job_rows_count() RETURNS BIGINT READS SQL DATA
RETURN (SELECT COUNT(*) FROM job_rows);

CREATE OR REPLACE PROCEDURE job_rows_amounts(IN p_part INT)
SELECT MOD(id, 5) AS five, p_part AS part, COUNT(*) AS records, CAST(SUM(amount) AS SIGNED) AS amount, MAX(amount) AS most
  FROM job_rows GROUP BY five;

CREATE OR REPLACE PROCEDURE job_rows_load(IN p_records JSON)
INSERT INTO job_rows (id, amount, price, at, mark, note, `unique`)
SELECT id, amount, price, at, mark, note, `unique`
  FROM JSON_TABLE(p_records, '$[*]' COLUMNS (
         id INT PATH '$.id' ERROR ON ERROR, amount INT PATH '$.amount' ERROR ON ERROR, price DECIMAL(12,2) PATH '$.price' ERROR ON ERROR,
         at DATETIME(3) PATH '$.at' ERROR ON ERROR, mark CHAR(36) PATH '$.mark' ERROR ON ERROR,
         note VARCHAR(200) PATH '$.note' ERROR ON ERROR, `unique` VARCHAR(40) PATH '$.unique' ERROR ON ERROR)) AS record;

CREATE OR REPLACE PROCEDURE job_rows_by_keys(IN p_keys JSON)
SELECT job_rows.* FROM JSON_TABLE(p_keys, '$[*]' COLUMNS (id INT PATH '$.id' ERROR ON ERROR)) AS wanted
  STRAIGHT_JOIN job_rows ON job_rows.id = wanted.id FOR UPDATE;

CREATE OR REPLACE PROCEDURE job_rows_remove_many(IN p_keys JSON)
DELETE job_rows FROM JSON_TABLE(p_keys, '$[*]' COLUMNS (id INT PATH '$.id' ERROR ON ERROR)) AS wanted
  STRAIGHT_JOIN job_rows ON job_rows.id = wanted.id;
