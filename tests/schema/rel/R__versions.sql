CREATE OR REPLACE PROCEDURE versioned_create(IN p_id VARCHAR(40), IN p_text VARCHAR(200))
INSERT INTO versioned (id, text) VALUES (p_id, p_text);

CREATE OR REPLACE PROCEDURE versioned_create_many(IN p_records JSON)
INSERT INTO versioned (id, text)
SELECT id, text
  FROM JSON_TABLE(p_records, '$[*]' COLUMNS (
         id VARCHAR(40) PATH '$.id' ERROR ON ERROR,
         text VARCHAR(200) PATH '$.text' ERROR ON ERROR)) AS record;

CREATE OR REPLACE PROCEDURE versioned_update(IN p_id VARCHAR(40), IN p_text VARCHAR(200), IN p_expected_version INT)
UPDATE versioned SET text = COALESCE(p_text, text), revision = revision + 1
 WHERE id = p_id AND (p_expected_version IS NULL OR revision = p_expected_version);

CREATE OR REPLACE PROCEDURE versioned_delete(IN p_id VARCHAR(40), IN p_expected_version INT)
DELETE FROM versioned WHERE id = p_id AND (p_expected_version IS NULL OR revision = p_expected_version);

CREATE OR REPLACE PROCEDURE versioned_by_id(IN p_id VARCHAR(40))
SELECT id, text, revision, token FROM versioned WHERE id = p_id;

-- Returns the record, also when it has not the expected version.
CREATE OR REPLACE PROCEDURE versioned_replace(IN p_id VARCHAR(40), IN p_text VARCHAR(200), IN p_expected_version UUID)
BEGIN
  UPDATE versioned SET text = p_text, token = UUID()
   WHERE id = p_id AND (p_expected_version IS NULL OR token = p_expected_version);
  SELECT id, text, token FROM versioned WHERE id = p_id;
END;

CREATE OR REPLACE PROCEDURE versioned_drop(IN p_id VARCHAR(40))
DELETE FROM versioned WHERE id = p_id;
